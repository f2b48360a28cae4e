#!/usr/bin/env bash
# Is the wheel whole? Builds it, installs it into an empty environment, and uses it from another folder: `--help` of the
# three commands, every file that is no module, and two small label runs with their reports.
#   scripts/check_wheel.sh        half a minute
# What we depend on is read from .venv ($PYTHON) by path, without its editable link to this checkout; our own packages
# can only come from the wheel. The judge is the tests' endpoint.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
work="$(mktemp -d)"
endpoint=""
trap '[ -z "$endpoint" ] || kill "$endpoint"; rm -rf "$work"' EXIT
unset PYTHONPATH
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work" "$here" 2> >(grep -v '^WARNING' >&2)
wheel="$(ls "$work"/*.whl)"

echo "== everything that git holds in the three packages is in $(basename "$wheel"), and nothing else"
"$python" -m zipfile --list "$wheel" | awk 'NR > 1 { print $1 }' | grep -v '\.dist-info/' | sort >"$work/packed"
git -C "$here" ls-files judge_pipeline reward_model dpo | grep -v 'README\.md$' | sort >"$work/tracked"
grep -v 'README\.md$' "$work/packed" | diff "$work/tracked" -
sed 's/.*\.//' "$work/packed" | sort | uniq -c

"$python" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-index "$wheel"
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/needs.pth"
mkdir "$work/elsewhere"
cd "$work/elsewhere"
export PATH="$work/env/bin:$PATH"
for package in judge_pipeline reward_model dpo; do
    python -c "import sys, $package; sys.exit(not $package.__file__.startswith(sys.prefix))" || {
        echo "$package does not come from the wheel" >&2
        exit 1
    }
done

echo "== the three commands"
for command in judge-pipeline reward-model dpo; do
    "$command" --help >"help-$command"
    "$command" --version
done

echo "== two label runs: English with every dimension, Chinese with joint ratings"
python - "$here/tests/judge_pipeline" >url 2>endpoint.log <<'PYTHON' &
import sys, threading
sys.path.append(sys.argv[1])
from pathlib import Path
from judge_servers import JudgeServer, write_prompts
write_prompts(Path("prompts.jsonl"), 2, 2)
with JudgeServer() as server:
    print(server.url, flush=True)
    threading.Event().wait()
PYTHON
endpoint=$!
for _ in $(seq 100); do [ -s url ] && break || sleep 0.1; done
judge=(--judge.base-url "$(cat url)" --judge.model judge --retrieval bm25)
judge-pipeline label prompts.jsonl --output english "${judge[@]}" --dimensions paper trajectory --statements-per-call 6
judge-pipeline label prompts.jsonl --output chinese "${judge[@]}" --language zh --joint-ratings
judge-pipeline report english
for run in english chinese; do [ -s "$run/report.html" ] && [ "$(wc -l <"$run/labels.jsonl")" = 4 ]; done
echo "the wheel is whole"
