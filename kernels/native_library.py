"""The compiled CPU faces of the operations, or the reason why there are none.

`library()` compiles and loads on first use. Without a compiler, after a failed compile or with
XPYD_NATIVE=0 it is None and each operation takes its torch face; both give right answers, and the
log says once which one it is. Calls go through ctypes, which lets go of the GIL. Operations know
their own arguments; this module knows only the signatures.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.native_build import BuildError, build

_logger = logging.getLogger(__name__)

_I, _L, _F, _P = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_A = ctypes.POINTER(_L)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "xpyd_isa": (ctypes.c_char_p, []),
    "xpyd_set_num_threads": (None, [_I]),
    "xpyd_num_threads": (_I, []),
    "xpyd_linear_bytes": (_L, [_I, _I, _L, _L]),
    "xpyd_linear_pack": (None, [_I, _I, _P, _L, _L, _L, _P]),
    "xpyd_linear": (None, [_I, _I, _P, _L, _L, _L, _P, _P, _P, _P]),
    "xpyd_rms_norm": (None, [_I, _P, _L, _L, _L, _L, _L, _P, _F, _P]),
    "xpyd_add_rms_norm": (None, [_I, _P, _P, _L, _L, _P, _F, _P, _P]),
    "xpyd_silu_mul": (None, [_I, _P, _L, _L, _L, _P]),
    "xpyd_rope": (None, [_I, _P, _L, _L, _L, _L, _P, _P, _L, _P]),
    "xpyd_store_kv": (None, [_P, _L, _L, _L, _L, _L, _P, _L, _L, _L, _L, _P]),
    "xpyd_best": (None, [_P, _L, _L, _L, _P]),
    "xpyd_log_softmax": (None, [_P, _L, _L, _L, _P]),
    "xpyd_gumbel": (None, [_P, _P, _L, _L, _P]),
    "xpyd_gumbel_at": (None, [_P, _P, _P, _L, _L, _P]),
    "xpyd_decoder_scratch_bytes": (_L, [_P, _P]),
    "xpyd_decoder": (None, [_P, _P, _P]),
    "xpyd_attention": (None, [_I, _P, _L, _L, _P, _A, _P, _A, _P, _L, _P, _P, _A, _F, _L, _F, _P]),
}

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in native/simd.h


@dataclass(frozen=True, slots=True)
class Status:
    """Which face runs on the CPU, and why."""

    face: Literal["native", "torch"]
    reason: str
    path: Path | None = None


class _Loaded:
    """The one library of this process, loaded under a lock by whoever comes first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.status: Status | None = None
        self.library: ctypes.CDLL | None = None
        self.num_threads: int | None = None


_loaded = _Loaded()


def library() -> ctypes.CDLL | None:
    """The native library, or None if the torch faces are to be used."""
    if _loaded.status is None:
        with _loaded.lock:
            if _loaded.status is None:
                _loaded.library, _loaded.status = _load()
    return _loaded.library


def library_for(*tensors: Tensor) -> ctypes.CDLL | None:
    """`library()`, if all tensors are on the CPU and of a dtype it knows."""
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype not in DTYPE_CODES:
            return None
    return library()


def int64_array(*values: int) -> ctypes.Array[ctypes.c_int64]:
    """For the arguments declared as arrays."""
    return (_L * len(values))(*values)


def status() -> Status:
    """Loads the library if nobody has yet."""
    library()
    assert _loaded.status is not None
    return _loaded.status


def set_num_threads(count: int) -> None:
    """Threads that share out one operation, the caller included; results do not depend on it.

    By default as many as torch uses, but no more than the CPUs this process may run on.
    """
    with _loaded.lock:
        _loaded.num_threads = count
        if _loaded.library is not None:
            _loaded.library.xpyd_set_num_threads(count)


def num_threads() -> int:
    native = library()
    return int(native.xpyd_num_threads()) if native is not None else torch.get_num_threads()


def _load() -> tuple[ctypes.CDLL | None, Status]:
    if os.environ.get("XPYD_NATIVE", "1") == "0":
        return None, Status("torch", "switched off by XPYD_NATIVE=0")
    try:
        path = build()
        native = _open(path)
    except (BuildError, OSError) as error:
        _logger.warning("CPU operations run in plain torch, several times slower: %s", error)
        return None, Status("torch", str(error))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(native, name)
        function.restype, function.argtypes = result, arguments
    native.xpyd_set_num_threads(_loaded.num_threads or _default_num_threads())
    isa = native.xpyd_isa().decode()
    _logger.info("native CPU operations, %s, %s", isa, path)
    return native, Status("native", isa, path)


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        path.unlink(missing_ok=True)  # damaged: the next process compiles it anew
        raise


def _default_num_threads() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(torch.get_num_threads(), allowed or 1)
