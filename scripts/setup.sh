#!/usr/bin/env bash
# Make the virtual environment and install what is missing. Sourced or run; quiet when all is there.
#   scripts/setup.sh [dev]     dev: with what the tests need
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=nixl
[ "${1:-}" = dev ] && extra=nixl,dev
stamp=.venv/.xpyd-setup
want="$extra $(cksum < pyproject.toml)"
if [ -f "$stamp" ] && { [ "$(cat "$stamp")" = "$want" ] || [ "$(cat "$stamp")" = "nixl,dev $(cksum < pyproject.toml)" ]; }; then
    exit 0
fi
if [ ! -x .venv/bin/python ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        { echo "xpyd needs Python 3.10 or newer ($python is not); set PYTHON=/path/to/python" >&2; exit 2; }
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
step() {
    echo "setup: $1 …"
    shift
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        echo "setup: failed; the lines above say why" >&2
        exit 1
    fi
    rm -f "$log"
}
# torch first, and exactly: without a GPU a CPU build is wanted, and a looser request may bring CUDA.
# Where to find one is pip's own setting (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL).
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    if command -v nvidia-smi >/dev/null 2>&1; then
        step "installing torch (CUDA build)" pip install "torch>=2.11,<2.14" numpy
    else
        step "installing torch (CPU build)" pip install torch==2.13.0 numpy
    fi
fi
step "installing xpyd and what it needs" pip install -e ".[$extra]"
if [ "$extra" = nixl,dev ]; then
    # Some client packages want versions that do not go together with ours; their programs run apart.
    [ -x .venv-clients/bin/python ] || .venv/bin/python -m venv .venv-clients
    step "installing client packages for the tests" \
        .venv-clients/bin/python -m pip --disable-pip-version-check install -r tests/clients/requirements.txt
fi
echo "setup: compiling CPU kernels (without a compiler they run in plain torch, slower) …"
.venv/bin/python -c 'from kernels import native_library as n; print("setup: kernels:", n.status().face)'
echo "$want" > "$stamp"
echo "setup: done"
