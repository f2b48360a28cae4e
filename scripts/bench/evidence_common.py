"""What the evidence benchmarks share: the machine and versions a result was measured with, and writing it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from judge_pipeline.common.run_dir import versions


def processor() -> str:
    """Name of the processor, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def command_line(about: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the benchmark's docstring as it stands."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def settings_of(args: argparse.Namespace, *left_out: str) -> dict[str, str]:
    """The settings as a result records them, without paths that say nothing elsewhere."""
    return {name: str(value) for name, value in vars(args).items() if name not in left_out}


def environment() -> dict[str, Any]:
    """Hardware, versions and date, to stand beside every result."""
    try:
        import torch

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    except ImportError:
        gpu = None
    return {
        "hardware": {"cpu": processor(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu},
        "load_average": round(os.getloadavg()[0], 1),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a benchmark's JSON file whole."""
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path}")
