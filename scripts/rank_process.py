"""A tensor-parallel rank of an instance, started by its rank 0: `LINE_FD STORE_FD`, both open."""

from __future__ import annotations

import sys

from common.instance.rank import run_rank

if __name__ == "__main__":
    sys.exit(run_rank(*map(int, sys.argv[1:3])))
