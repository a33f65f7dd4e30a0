"""Engines: what turns a validated request into tokens, behind one protocol (`base.Engine`).

`vllm_engine` embeds vLLM, `upstream_engine` forwards to another server, `synthetic_engine` makes deterministic
tokens without a model, `pool` owns the engines' lives. Only modules named `vllm_*` import vLLM.
"""
