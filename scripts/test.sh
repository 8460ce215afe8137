#!/usr/bin/env bash
# Set up what is missing and run the tests. Arguments go to pytest; default: all but GPU and long tests.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# (what the processes under test log is part of what is tested: leave XPYD_LOG_LEVEL alone)
export XPYD_CLIENTS_PYTHON=${XPYD_CLIENTS_PYTHON:-$PWD/.venv-clients/bin/python}
if [ $# -eq 0 ]; then
    # Tests that share servers stay in one process (tests/conftest.py).
    set -- -m "not gpu and not long" -n auto --maxprocesses 4 --dist loadfile
fi
exec .venv/bin/python -m pytest -q "$@"
