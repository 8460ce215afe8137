"""How long a thread may compute before another one of the same core gets its turn.

On a core that computes all the time, whoever answers messages waits for the end of the computing
thread's slice, some 3 ms, each time there is something to say. Linux 6.12 and newer let a thread
ask for shorter slices: it then runs as soon as there is something to do, and no longer in all.
Elsewhere nothing changes. Threads inherit what the thread that starts them has.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

SHORT_S = 0.0001  # the shortest that Linux grants
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # sched_setattr, sched_getattr
_ATTRIBUTES = struct.Struct("=IIQiIQQQII")  # size, policy, flags, nice, priority, runtime, …
_RUNTIME = 5  # of a SCHED_OTHER thread: its slice in nanoseconds; 0: the kernel's own
_SCHED_OTHER = 0


def ask_for_short_slices() -> bool:
    """For the calling thread, and those that it will start: it says little, and at once."""
    return _set_slice(round(SHORT_S * 1e9))


def ask_for_usual_slices() -> bool:
    """For the calling thread: it computes."""
    return _set_slice(0)


def slice_s() -> float | None:
    """Of the calling thread; None where the kernel does not say."""
    found = _read()
    return None if found is None else found[_RUNTIME] / 1e9


def _set_slice(nanoseconds: int) -> bool:
    """False where it cannot be had."""
    found = _read()
    if found is None or found[1] != _SCHED_OTHER:
        return False
    values = list(found)
    values[_RUNTIME] = nanoseconds
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.pack(*values))
    return _call(0, buffer) == 0


def _read() -> tuple[int, ...] | None:
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if _call(1, buffer, _ATTRIBUTES.size) != 0:
        return None
    return _ATTRIBUTES.unpack(buffer.raw[: _ATTRIBUTES.size])


def _call(which: int, buffer: ctypes.Array[ctypes.c_char], *size: int) -> int:
    """sched_setattr (0) or sched_getattr (1) of the calling thread; not 0: refused."""
    numbers = _CALLS.get(platform.machine())
    if not sys.platform.startswith("linux") or numbers is None:
        return -1
    library = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_long(numbers[which]), ctypes.c_int(0), buffer]
    if size:
        arguments.append(ctypes.c_uint(size[0]))
    return int(library.syscall(*arguments, ctypes.c_uint(0)))
