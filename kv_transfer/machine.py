"""Which machine this is: two processes that read the same name run under the same kernel."""

from __future__ import annotations

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str:
    with open(_BOOT_ID) as file:
        return file.read().strip()
