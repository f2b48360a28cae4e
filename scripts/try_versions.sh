#!/usr/bin/env bash
# The fast tests with other versions of what we depend on, in an environment of their own.
#   scripts/try_versions.sh oldest [PYTEST-ARGS]   the lower bound of every dependency in pyproject.toml (.venv-oldest)
#   scripts/try_versions.sh newest [PYTEST-ARGS]   the newest releases that pyproject.toml allows (.venv-newest)
# torch stays at the version of environment.sh; TORCH_PIN=torch==X tries another. When the newest versions pass,
#   .venv-newest/bin/pip freeze --exclude-editable | grep -vE '^(torch|triton|nvidia-)' > scripts/constraints.txt
# makes them the ones that quickstart.sh and test.sh install.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

which="${1:-}"
[ "$which" = oldest ] || [ "$which" = newest ] || { sed -n '2,7p' "$0" >&2 && exit 2; }
shift
venv="$CHECKOUT/.venv-$which"

lower_bounds() { # name>=1.2,<2 becomes name==1.2
    "$(find_python)" - <<'PYTHON'
import re, tomllib
for line in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    if not line.startswith("torch>"):
        print(re.sub(r">=([^,;]+)(,[^;]*)?", r"==\1", line))
PYTHON
}

say "Installing the $which versions into $venv"
if [ "$which" = oldest ]; then
    rm -rf "$venv"
    bounds="$(mktemp)"
    trap 'rm -f "$bounds"' EXIT
    lower_bounds >"$bounds"
    install_product "$venv" dev --constraint "$bounds"
else
    install_product "$venv" dev --upgrade --upgrade-strategy eager
fi
"$venv/bin/python" -m pip list --disable-pip-version-check 2>/dev/null | grep -E '^(torch|transformers|trl|peft|accelerate|datasets|sentence-transformers|openai|pydantic) '

say "pytest"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
[ $# -gt 0 ] || set -- -m "not slow and not vllm and not browser"
"$venv/bin/python" -m pytest "$@"
