#!/usr/bin/env bash
# Everything that must hold before a change goes in: ruff, the type checker, and all tests, on a fresh machine.
#   scripts/test.sh              everything (about 12 minutes on 2 cores after installation)
#   scripts/test.sh --fast       without the slow tests, the vLLM server and the browser
#   scripts/test.sh PYTEST-ARGS  only these
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

find_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome || true; }

make_environment dev

arguments=("$@")
if [ "${1:-}" = "--fast" ]; then
    arguments=(-m "not slow and not vllm and not browser" "${@:2}")
elif [ $# -eq 0 ]; then
    if [ "$(uname -m)" = x86_64 ] && grep -q avx512f /proc/cpuinfo; then
        make_vllm_environment || echo "vLLM could not be installed: its tests are skipped"
    else
        echo "vLLM's CPU build wants x86-64 with AVX-512: its tests are skipped"
    fi
    if [ -z "$(find_browser)" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "Installing Chromium for the report's tests"
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 ||
            echo "Chromium could not be installed: the browser tests are skipped"
    fi
fi

say "ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .

say "mypy"
.venv/bin/mypy

say "pytest"
.venv/bin/python -m pytest --durations=15 "${arguments[@]}"
