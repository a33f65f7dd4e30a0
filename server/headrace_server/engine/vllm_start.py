"""How an engine of vLLM comes up: imports, configuration, processes. Blocks for seconds, so it runs in a thread.

Nothing of vLLM is imported before the first engine is wanted. What is configured for one engine must not show in
another: vLLM keeps some of it in this process's environment, so engines are configured one at a time, and what is meant
for one engine goes to its own processes.
"""

import gc
import logging
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING

from headrace_server.engine.base import EngineSpec
from headrace_server.engine.vllm_arguments import command_line
from headrace_server.engine.vllm_child import failure_path
from headrace_server.engine.vllm_compile_cache import (
    cache_key,
    heal_cache,
    opened_cache,
    software_facts,
    this_processor,
)
from headrace_server.engine.vllm_environment import (
    cache_variables,
    engine_variables,
    fork_server_environment,
    set_defaults,
)
from headrace_server.engine.vllm_forkserver import ForkServer, ForkServerUnusable, fork_server
from headrace_server.engine.vllm_load_report import report_path, take_report
from headrace_server.engine.vllm_processes import Seam, StartClosed, starting, warn_of_slow_start

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from headrace_server.engine.vllm_llm import EngineLlm
    from headrace_server.engine.vllm_stats import StepCounters

logger = logging.getLogger(__name__)

_configuring = threading.Lock()


@dataclass(frozen=True, slots=True)
class Built:
    """An engine whose processes serve."""

    llm: "EngineLlm"
    args: Namespace
    counters: "StepCounters"


def preload(scratch: Path | None, *, fast_start: bool = True) -> None:
    """Import all of vLLM that an engine and the loop will need, in a thread; a second call waits for the first and
    costs nothing. With `fast_start` the process from which engines are forked begins first, and imports at the same
    time. `scratch`: see `EngineSpec`."""
    set_defaults(scratch)
    if fast_start:
        _fork_server(scratch).start(fork_server_environment())
    if "vllm" not in sys.modules:
        logger.info("vllm_import")
    gc.disable()  # 20 to 27 % of the time that the imports take
    try:
        _import()
        gc.freeze()  # a full collection would walk 600,000 objects that stay: 0.3 s in which no token is sent
    finally:
        gc.enable()


def _import() -> None:
    import vllm.engine.arg_utils
    import vllm.entrypoints.launchers.api_server.app_state
    import vllm.entrypoints.launchers.cli_args  # noqa: F401

    import headrace_server.engine.vllm_capacity
    import headrace_server.engine.vllm_generation
    import headrace_server.engine.vllm_llm
    import headrace_server.engine.vllm_meter
    import headrace_server.engine.vllm_serving  # noqa: F401


def unload(scratch: Path | None) -> None:
    """End the process from which engines of this `scratch` are forked, if there is one; it ends with this process by
    itself."""
    _fork_server(scratch).stop()


def forks_for(spec: EngineSpec) -> Callable[[], str | None]:
    """Where an engine's processes are to be forked; answers None, after saying why, where each has to start afresh."""
    server = _fork_server(spec.scratch)

    def address() -> str | None:
        try:
            return server.address()
        except ForkServerUnusable as error:
            warn_of_slow_start(f"the process to fork from: {error}")
            return None

    return address if spec.fast_start else lambda: None


def _fork_server(scratch: Path | None) -> ForkServer:
    return fork_server(Path(util.get_temp_dir()) if scratch is None else scratch)


def build(spec: EngineSpec, seam: Seam) -> Built:
    """Start an engine's processes by `seam` and wait until they are ready.

    Raises:
        StartClosed: `seam` was closed meanwhile.
        Exception: vLLM's builders raise anything.
        SystemExit: so does its parser.
    """
    preload(spec.scratch, fast_start=spec.fast_start)
    folder = None if spec.compile_cache is None else spec.compile_cache / _compile_key()

    def is_bad() -> bool:
        """Whether the failure may be the cache's: it was used, and it is not the weights that do not come."""
        report = report_path(spec)
        is_used = cache_variables(folder or Path()).items() <= seam.variables.items()
        if seam.is_closed or not is_used or (report is not None and report.exists()):
            return False
        take_report(failure_path(seam.folder))
        return True

    return heal_cache(lambda: _built(spec, seam), folder, is_bad=is_bad)


def _built(spec: EngineSpec, seam: Seam) -> Built:
    from vllm import envs
    from vllm.usage.usage_lib import UsageContext

    from headrace_server.engine.vllm_llm import EngineLlm
    from headrace_server.engine.vllm_stats import StepCounters, step_logger

    with _configuring, starting(seam):
        args, config = _configured(spec, seam)
    counters = StepCounters()
    with starting(seam):
        llm: EngineLlm = EngineLlm.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[step_logger(counters)],
            disable_log_stats=True,
        )
    llm.log_stats = False  # of every token; those of every step go on
    envs.enable_envs_cache()  # as vLLM's own processes do; some are read for every token
    if seam.is_closed:
        llm.shutdown()
        llm.release()
        raise StartClosed("closed while it was starting")
    return Built(llm, args, counters)


def _configured(spec: EngineSpec, seam: Seam) -> "tuple[Namespace, VllmConfig]":
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from headrace_server.engine.vllm_capacity import share_steps

    envs.disable_envs_cache()  # of an engine before this one
    cpu = current_platform.is_cpu()
    args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(command_line(spec, cpu=cpu))
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)
    share_steps(config)
    config.observability_config.enable_logging_iteration_details = True  # told to our logger, which writes no lines
    variables = engine_variables(
        seam.folder,
        cpus=spec.cpus,
        num_ranks=config.parallel_config.local_world_size,
        eager_on_cpu=args.enforce_eager if cpu else None,
    )
    seam.variables = variables | _cache_variables(spec, args)
    return args, config


def _cache_variables(spec: EngineSpec, args: Namespace) -> dict[str, str]:
    if spec.compile_cache is None or args.enforce_eager:
        return {}
    folder = opened_cache(spec.compile_cache, _compile_key())
    return {} if folder is None else cache_variables(folder)


def _compile_key() -> str:
    from vllm.platforms import current_platform

    hardware = this_processor() if current_platform.is_cpu() else {"gpu": current_platform.get_device_name()}
    return cache_key(software_facts() | hardware)
