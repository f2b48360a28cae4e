"""What `dpo train` writes goes straight into lm-eval; shown on a tiny local task (lm-eval is no dependency of ours)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dpo_helpers import pair_rows, train, write_jsonl

TASK = """task: harbour
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["timber", "oranges"]
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_an_adapter_is_evaluated_beside_its_base(tmp_path: Path, tiny_model: Path):
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows())
    assert train(pairs, tiny_model, tmp_path / "dpo", "--max-steps", "3", "--eval-fraction", "0") == 0
    rows = [
        {"question": f"What came from the {side}?", "answer": i} for i, side in enumerate(("north", "south"))
    ]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    data = write_jsonl(tmp_path / "test.jsonl", rows)
    (tasks / "harbour.yaml").write_text(TASK.format(data=data))
    likelihoods = {}
    for name, extra in (("base", ""), ("trained", f",peft={tmp_path / 'dpo'}")):
        out = tmp_path / name
        done = subprocess.run(
            [sys.executable, "-m", "lm_eval", "--model", "hf",
             "--model_args", f"pretrained={tiny_model},dtype=float32{extra}",
             "--tasks", "harbour", "--include_path", str(tasks), "--apply_chat_template", "--batch_size", "1",
             "--device", "cpu", "--log_samples", "--output_path", str(out)],
            capture_output=True, text=True, timeout=600,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        results = json.loads(next(out.rglob("results*.json")).read_text())["results"]["harbour"]
        assert results["acc,none"] in (0.0, 0.5, 1.0)
        samples = [json.loads(line) for line in next(out.rglob("samples*.jsonl")).read_text().splitlines()]
        likelihoods[name] = [float(sample["filtered_resps"][0][0]) for sample in samples]
    assert len(likelihoods["base"]) == 2
    assert likelihoods["base"] != pytest.approx(likelihoods["trained"], abs=1e-4)
