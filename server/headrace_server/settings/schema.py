"""What can be configured. Every key is documented here and nowhere else: README's table is made from this file.

Units are in the names; bytes can be written as `3GiB` or `500MB`, too. Unknown keys are refused, so a key exists here
only once something obeys it.
"""

from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    ByteSize,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    model_validator,
)

from headrace_models.trust import Trust
from headrace_server.settings.access import AuthSettings, TenantSettings
from headrace_server.settings.scheduling import SchedulingSettings
from headrace_server.settings.sections import MIB, BindingName, ModelName, Section, Size, VariableName

DEFAULT_MODEL = "embedded:smollm2-135m-instruct"

_HOST = r"([A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\])"
HostAndPort = Annotated[str, StringConstraints(pattern=rf"^{_HOST}(:[0-9]{{1,5}})?$")]


class TlsSettings(Section):
    """Serve HTTPS from PEM files."""

    cert_file: Path | None = Field(None, description="certificate chain, PEM")
    key_file: Path | None = Field(None, description="private key, PEM")

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self


class CorsSettings(Section):
    """Let pages from other origins call this server."""

    allow_origins: tuple[str, ...] = Field((), description="origins, `*` for any; empty: no CORS headers")


class ServerSettings(Section):
    """The HTTP front."""

    host: str = Field("127.0.0.1", description="address to bind; beyond loopback only with keys, or `auth.mode: none`")
    port: int = Field(8000, ge=0, le=65535, description="port to bind; 0 takes a free one")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="serve `/metrics` without a key on this port too (same host)"
    )
    max_body_bytes: Size = Field(ByteSize(8 * MIB), description="larger request bodies are refused with 413")
    body_timeout_seconds: PositiveFloat = Field(30.0, description="a body that takes longer is refused with 408")
    header_hold_seconds: PositiveFloat = Field(
        15.0,
        description="how long a stream's headers wait for its first token, so that a refusal keeps its status",
    )
    stalled_client_seconds: PositiveFloat = Field(
        60.0, description="a client that takes none of its answer for so long loses the connection (Linux)"
    )
    drain_seconds: PositiveFloat = Field(
        30.0, description="how long requests that were admitted may go on once the server is told to stop"
    )
    state_dir: Path = Field(
        Path("~/.local/state/headrace"),
        description="where the server keeps what is its own: its control socket, keys, usage",
    )
    tls: TlsSettings = Field(TlsSettings())
    cors: CorsSettings = Field(CorsSettings())


class CacheSettings(Section):
    """The model cache."""

    dir: Path = Field(Path("~/.cache/headrace"), description="where models are kept")
    max_bytes: Size | None = Field(
        None, description="most bytes of fetched weights; the least recently used ones go first. Unset: the disk's size"
    )
    max_connections: PositiveInt | None = Field(
        None, description="most connections of a fetch at once; unset: what the source finds polite"
    )
    bytes_per_second: Size | None = Field(None, description="most bytes that a fetch takes in a second")
    insecure_hosts: tuple[HostAndPort, ...] = Field(
        (), description="hosts (`host` or `host:port`) that may be spoken to over plain HTTP; loopback always may"
    )


class EngineSettings(Section):
    """The engine pool: which models are in memory, and for how long."""

    memory_budget_bytes: Size | None = Field(
        None,
        description="memory for all engines together: of the GPUs where there are any, else of the machine. "
        "Unset: 0.9 of it",
    )
    keep_alive_seconds: PositiveFloat | None = Field(
        None, description="a model that nobody has used for so long is unloaded. Unset: once its memory is needed"
    )
    turn_seconds: PositiveFloat = Field(
        30.0, description="how long a model in use may keep memory that requests for another one wait for"
    )
    hold_seconds: PositiveFloat = Field(
        600.0,
        description="longest that a request waits for its model to be loaded; one with a deadline waits till then",
    )
    max_held_requests: PositiveInt = Field(
        256, description="requests that may wait for one model at a time; more are refused with 503"
    )
    heartbeat_seconds: PositiveFloat = Field(
        30.0, description="an engine that does not move for so long while it should is taken for hung and restarted"
    )
    fast_start: bool = Field(
        True, description="start engines from a process that has imported everything; off: each imports for itself"
    )


class LoadWhen(StrEnum):
    """When a model is brought into memory."""

    STARTUP = "startup"
    DEMAND = "demand"


class EngineArguments(Section):
    """The vLLM arguments that may be set; names and meaning are vLLM's. Unset keys take the engine's default."""

    max_model_len: PositiveInt | None = Field(None, description="context length in tokens")
    max_num_seqs: PositiveInt | None = Field(None, description="most sequences in one step")
    max_num_batched_tokens: PositiveInt | None = Field(None, description="most tokens in one step; 256 on CPU")
    kv_cache_memory_bytes: Size | None = Field(None, description="KV-cache size; 1 GiB on CPU")
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1, description="share of the GPU's memory to use")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = Field(None, description="computing precision")
    quantization: str | None = Field(None, description="quantization method")
    enforce_eager: bool | None = Field(None, description="run without compiling; true on CPU")
    enable_prefix_caching: bool | None = Field(None, description="reuse KV blocks of equal prompt beginnings")
    tensor_parallel_size: PositiveInt | None = Field(None, description="GPUs that share every layer")
    pipeline_parallel_size: PositiveInt | None = Field(None, description="stages that share the layers")
    runner: Literal["auto", "generate", "pooling"] | None = Field(None, description="what the model is for")
    cpus: str | None = Field(
        None,
        pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$",
        description="processors for its computing threads on CPU, as `0-3,8`; unset: shared out among the models",
    )
    seed: int | None = Field(None, ge=0, description="default seed of the sampler")
    max_logprobs: int | None = Field(None, ge=0, le=20, description="most alternatives per token")
    tool_call_parser: str | None = Field(None, description="parser for tool calls, turns `tool_choice: auto` on")
    tool_strict_level: Literal["auto", "function", "parameter"] | None = Field(
        None, description="`parameter`: every tool call satisfies its schema, also without `strict: true`"
    )
    reasoning_parser: str | None = Field(None, description="parser for reasoning sections")
    chat_template: Path | None = Field(None, description="chat template file in place of the model's own")
    generation_config: str | None = Field(
        None, description="`auto`: the model's sampling defaults, `vllm`: neutral ones"
    )


class EngineKind(StrEnum):
    """What runs a model."""

    VLLM = "vllm"
    UPSTREAM = "upstream"
    SYNTHETIC = "synthetic"


class SyntheticArguments(Section):
    """How the synthetic engine behaves; it has no weights and serves tests and load tests."""

    ttft_ms: float = Field(0.0, ge=0, description="time to first token")
    itl_ms: float = Field(0.0, ge=0, description="time between tokens")
    seed: int = Field(0, description="other seeds give other words")
    max_model_len: PositiveInt = Field(8192, description="context length in tokens")
    max_num_seqs: PositiveInt = Field(256, description="requests served at once; others wait")
    load_seconds: float = Field(0.0, ge=0, description="how long a start takes")
    memory_bytes: ByteSize = Field(ByteSize(0), ge=0, description="memory that it is counted with")
    fail_after_tokens: PositiveInt | None = Field(None, description="fault: fail each request after so many tokens")
    step_ms: float = Field(0.0, ge=0, description="work in steps, as an engine does, of at least so long; 0: do not")
    decode_us_per_sequence: float = Field(0.0, ge=0, description="what a sequence that decodes adds to a step")
    prefill_us_per_token: float = Field(0.0, ge=0, description="what a prompt's token adds to a step")
    max_num_batched_tokens: PositiveInt = Field(2048, description="most tokens in one step")
    kv_cache_tokens: PositiveInt | None = Field(None, description="tokens that fit in memory; unset: any number")
    prefix_caching: bool = Field(False, description="prompts that begin like earlier ones cost less")


class UpstreamArguments(Section):
    """Another OpenAI-compatible server that runs the model."""

    url: str | None = Field(None, description="`http(s)://host:port[/prefix]` or `unix:///path/to/socket`")
    binding: BindingName | None = Field(
        None,
        description="in place of `url` and `upstream_model`: the name under which compose's `models:` binds the model "
        "to this service; `llm` stands for the variables `LLM_URL` and `LLM_MODEL`",
    )
    endpoint_var: VariableName | None = Field(
        None, description="the same for a binding in long syntax: the variable with the address"
    )
    model_var: VariableName | None = Field(None, description="and the variable with the model's name")
    upstream_model: str | None = Field(None, description="the model's name over there, where it differs")
    api_key: SecretStr | None = Field(None, description="key to send there")
    connect_timeout_seconds: PositiveFloat = Field(5.0, description="how long a connection may take")

    @property
    def is_bound(self) -> bool:
        """Whether address and name stand in variables."""
        return self.binding is not None or self.endpoint_var is not None

    @model_validator(mode="after")
    def _binding_is_one(self) -> Self:
        if (self.endpoint_var is None) != (self.model_var is None):
            raise ValueError("endpoint_var and model_var go together")
        if self.binding is not None and self.endpoint_var is not None:
            raise ValueError("binding, or endpoint_var and model_var: not both")
        if self.is_bound and (self.url is not None or self.upstream_model is not None):
            raise ValueError("a binding brings the address and the model's name: leave out url and upstream_model")
        return self


class ModelSettings(Section):
    """One model of the catalog."""

    id: ModelName = Field(description="the name that clients use")
    aliases: tuple[ModelName, ...] = Field((), description="further names")
    source: str | None = Field(
        None,
        description="model reference: `embedded:…`, `hf://…`, `oci://…`, `s3://…`, `https://…`, `file://…` or a path",
    )
    require_trust: Trust = Field(
        Trust.NONE,
        description="refuse weights that cannot be checked so far: `chunk`, `file`, or `none` for any",
    )
    engine: EngineKind = Field(EngineKind.VLLM, description="what runs it")
    arguments: EngineArguments = Field(EngineArguments(), description="vLLM arguments, see below")
    upstream: UpstreamArguments = Field(UpstreamArguments(), description="for `engine: upstream`, see below")
    synthetic: SyntheticArguments = Field(SyntheticArguments(), description="for `engine: synthetic`, see below")
    load: LoadWhen = Field(
        LoadWhen.STARTUP,
        description="`startup`: when the server starts, as far as models fit together; `demand`: at the first request",
    )
    keep_alive_seconds: PositiveFloat | None = Field(None, description="in place of `engine.keep_alive_seconds`")
    pin: bool = Field(False, description="never unload it to make room for another")
    client_chat_template: bool = Field(
        False,
        description="let clients send `chat_template` and `chat_template_kwargs` (templates are programs)",
    )
    remote_media: bool = Field(
        False, description="let clients name image, audio and video URLs that the engine then fetches"
    )

    @model_validator(mode="after")
    def _engine_has_what_it_needs(self) -> Self:
        if self.engine is EngineKind.VLLM and self.source is None:
            raise ValueError(f"model {self.id!r} needs a source")
        if self.engine is EngineKind.UPSTREAM and self.upstream.url is None and not self.upstream.is_bound:
            raise ValueError(f"model {self.id!r} needs upstream.url or upstream.binding")
        if self.engine is not EngineKind.UPSTREAM and self.upstream.is_bound:
            raise ValueError(f"model {self.id!r} is bound to an upstream server, so it needs engine: upstream")
        if self.engine is not EngineKind.VLLM and self.require_trust is not Trust.NONE:
            raise ValueError(f"model {self.id!r} has no weights here, so require_trust means nothing")
        return self


class LogFormat(StrEnum):
    """How log lines look."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class TelemetrySettings(Section):
    """Logs."""

    log_format: LogFormat = Field(LogFormat.AUTO, description="`json`, `text`, or `auto`: text on a terminal")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line shown")
    access_log: bool = Field(True, description="one line per request")


class Settings(Section):
    """The whole configuration."""

    server: ServerSettings = Field(ServerSettings())
    cache: CacheSettings = Field(CacheSettings())
    engine: EngineSettings = Field(EngineSettings())
    auth: AuthSettings = Field(AuthSettings())
    tenants: tuple[TenantSettings, ...] = Field(())
    scheduling: SchedulingSettings = Field(SchedulingSettings())
    models: tuple[ModelSettings, ...] = Field(())
    telemetry: TelemetrySettings = Field(TelemetrySettings())

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        seen: set[str] = set()
        for name in (name for model in self.models for name in (model.id, *model.aliases)):
            if name in seen:
                raise ValueError(f"the model name {name!r} is used twice")
            seen.add(name)
        return self

    @model_validator(mode="after")
    def _tenants_are_unique(self) -> Self:
        seen: set[str] = set()
        for tenant in self.tenants:
            if tenant.id in seen:
                raise ValueError(f"the tenant {tenant.id!r} is there twice")
            seen.add(tenant.id)
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
