"""One start of vLLM, as a process of its own: load a model, generate or embed, print what came, or why it did not.

`python -m tests.engine.loader_run` with a JSON object of vLLM's engine arguments on standard input.
"""

import json
import os
import sys
from typing import Any

PROMPTS = ["The capital of France is", "One, two, three, four,", "Water boils at"]
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
}


def main() -> None:
    os.environ.update(ENVIRONMENT)
    arguments: dict[str, Any] = json.load(sys.stdin)
    from vllm import LLM, SamplingParams

    try:
        llm = LLM(enforce_eager=True, kv_cache_memory_bytes=1 << 28, disable_log_stats=True, **arguments)
    except RuntimeError as error:
        _tell(error=str(error))
        return
    if arguments.get("runner") == "pooling":
        _tell(vectors=[output.outputs.embedding for output in llm.embed(PROMPTS, use_tqdm=False)])
    else:
        sampling = SamplingParams(temperature=0, max_tokens=24)
        outputs = llm.generate(PROMPTS, sampling, use_tqdm=False)
        _tell(texts=[output.outputs[0].text for output in outputs])


def _tell(**result: object) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
    os._exit(0)  # vLLM leaves a thread of C++'s behind, and the end of the interpreter can abort because of it
