#!/usr/bin/env bash
# One small fixed run with the code of a git revision and with the working tree's, compared byte for byte.
#   scripts/same_outputs.sh REV        about five minutes on one core
# Sampled answers, labels, every stored judge call, a trained reward model's weights, scores, pairs and a trained
# adapter must be the same files. Both sides use the same virtual environment ($PYTHON, by default .venv's) on one
# thread, under the same relative paths, so nothing recorded needs to be left out. Exit code 1 when a file differs.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,6p' "$0" >&2 && exit 2; }
here="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
work="$(mktemp -d)"
trap 'git -C "$here" worktree remove --force "$work/then" 2>/dev/null; rm -rf "$work"' EXIT
git -C "$here" worktree add --quiet --detach "$work/then" "$1"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 CUDA_VISIBLE_DEVICES=

inputs() { # Two prompts with two answers to label, and six labelled prompts with three answers to train on.
    "$python" - <<'PYTHON'
import json
from pydoc_data.topics import topics

def write(name, rows):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

def prompt(name, size, count):
    lines = [line.strip() for line in topics[name].splitlines() if len(line.strip()) > 40]
    answers = [{"id": f"{name}-{i}", "text": " ".join(lines[3 * i : 3 * i + 2])} for i in range(count)]
    return {"id": name, "document_id": name, "context": topics[name][:size],
            "query": f"What does Python do at '{name}'?", "responses": answers}

write("asked.jsonl", [{**prompt(name, 1200, 0), "responses": []} for name in ("pass", "assert")])
write("answered.jsonl", [prompt(name, 1200, 2) for name in ("break", "del")])
known = [prompt(name, 1500, 3) for name in ("global", "import", "raise", "try", "while", "with")]
write("known.jsonl", known)
names = ("helpfulness", "logicality", "faithfulness", "completeness")
write("labels.jsonl", [
    {"prompt_id": row["id"], "response_id": answer["id"], "status": "labelled", "reward": None,
     "scores": {name: float((3 * p + 5 * a + 2 * d) % 11) for d, name in enumerate(names)}}
    for p, row in enumerate(known) for a, answer in enumerate(row["responses"])])
PYTHON
}

calls() { # The stored calls: keys, what was asked and answered; not when, and how long it took.
    "$python" - <<'PYTHON'
import sqlite3
rows = sqlite3.connect("judged/calls.sqlite").execute(
    "SELECT key, model, template, hex(request), text, finish_reason, input_tokens, output_tokens FROM calls ORDER BY key")
print(*rows, sep="\n")
PYTHON
}

chain() { # CHECKOUT
    mkdir "$work/run-$(basename "$1")" && cd "$work/run-$(basename "$1")"
    export PYTHONPATH="$1"
    [ "$("$python" -c 'import dpo; print(dpo.__file__)')" = "$1/dpo/__init__.py" ]
    inputs
    "$python" -m dpo.cli sample asked.jsonl --model smollm2 --output sampled.jsonl --n 2 --max-new-tokens 24 \
        --engine transformers --device cpu --dtype float32
    "$python" -m judge_pipeline.cli label answered.jsonl --output judged --judge.model smollm2 --judge.backend transformers \
        --temperature 0 --few-shot 0 --analysis-chars 80 --max-statements 2 --max-key-points 2 --item-chars 80 \
        --max-tokens 200 --existing replace || [ $? -eq 3 ] # 3: some answers lack a score, with a reason in their row
    calls >calls.txt
    "$python" -m reward_model.cli train labels.jsonl --prompts known.jsonl --base-model smollm2 --output rm --epochs 1 \
        --eval-fraction 0.2 --method full --freeze-layers 28 --precision fp32 --device cpu --allow-constant
    "$python" -m reward_model.cli score rm known.jsonl --output scored.jsonl --device cpu
    "$python" -m dpo.cli pairs scored.jsonl --output pairs.jsonl --min-responses 2
    "$python" -m dpo.cli train pairs.jsonl --model smollm2 --output policy --max-steps 2 --eval-fraction 0 \
        --gradient-accumulation-steps 1 --precision fp32 --device cpu
}

for checkout in "$work/then" "$here"; do
    echo "== $checkout"
    set +e # inside `if` or `||` the chain would go on after a command that failed
    (set -e && chain "$checkout") >"$work/log" 2>&1
    ended=$?
    set -e
    [ "$ended" -eq 0 ] || { tail -n 30 "$work/log" >&2 && echo "the run in $checkout failed" >&2 && exit 1; }
done
status=0
for file in sampled.jsonl judged/labels.jsonl calls.txt rm/model.safetensors scored.jsonl pairs.jsonl \
    policy/adapter_model.safetensors; do
    old="$work/run-then/$file" new="$work/run-$(basename "$here")/$file"
    if cmp -s "$old" "$new"; then
        printf 'same     %-34s %s bytes\n' "$file" "$(stat -c %s "$new")"
    else
        printf 'DIFFERS  %s\n' "$file" && status=1
        case "$file" in *.safetensors) cmp "$old" "$new" || true ;; *) diff "$old" "$new" | cut -c 1-2000 | head -n 8 || true ;; esac
    fi
done
exit $status
