#!/usr/bin/env bash
# Set up what is missing, then start X prefill and Y decode instances and a proxy on this machine.
#   scripts/run_xpyd.sh                              1 prefill + 1 decode, the bundled model, until Ctrl-C
#   scripts/run_xpyd.sh --demo                       the same, ask it a few things, stop
#   scripts/run_xpyd.sh --prefill 2 --decode 2 --model DIR -- --max-model-len 4096
# All flags: scripts/run_xpyd.sh --help
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
"$here/scripts/setup.sh"
exec "$here/.venv/bin/xpyd" up "$@"
