"""vLLM inside this process: whether it is there, and stopping it so that the process can end well.

vLLM's client keeps daemon threads that wait in C++. Python's own shutdown unwinds them through frames that do not allow
it, and the process aborts after all its work is done. So the engine is stopped by hand and its threads waited for.
"""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.optional_packages import INSTALL_LINES

THREADS = ("MPClientEngineMonitor", "EngineCoreOutputQueueThread")
WAIT_S = 20.0


def vllm_installed() -> bool:
    """Whether vLLM can be imported; importing it takes seconds, so it is only looked for."""
    return importlib.util.find_spec("vllm") is not None


def require_vllm(flag: str) -> None:
    """Raise UserError when vLLM, which `flag` asks for, is not installed."""
    if not vllm_installed():
        raise UserError(
            f"{flag}: vLLM is not installed here", f"{INSTALL_LINES['vllm']}, or leave the flag out"
        )


def stop_vllm(llm: Any) -> None:
    """Stop `vllm.LLM` or vLLM's `AsyncLLM`, and wait for the threads of its client."""
    threads = [thread for thread in threading.enumerate() if thread.name in THREADS]
    engine = getattr(llm, "llm_engine", None)
    if engine is None:
        llm.shutdown()
    else:
        engine.engine_core.shutdown()
    for thread in threads:
        thread.join(WAIT_S)
