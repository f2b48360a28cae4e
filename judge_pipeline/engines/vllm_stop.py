"""Stopping a vLLM engine that runs in this process, so that the process can end well.

vLLM's client keeps daemon threads that wait in C++. If Python's own shutdown finds them there, it unwinds them
through frames that do not allow it, and the process aborts ("terminate called without an active exception") after
all its work is done. So the engine is stopped by hand and its threads are waited for.
"""

from __future__ import annotations

import threading
from typing import Any

THREADS = ("MPClientEngineMonitor", "EngineCoreOutputQueueThread")
WAIT_S = 20.0


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
