"""The libraries' own chatter, kept off a log: their bars where there is no terminal, notices meant for developers."""

from __future__ import annotations

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Stop progress bars of transformers and datasets off a terminal, and FutureWarnings about their internals."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft|datasets")
    if sys.stderr.isatty():
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    # Read when datasets is imported, which takes a second that not every command needs.
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    if (datasets := sys.modules.get("datasets")) is not None:
        datasets.disable_progress_bars()
