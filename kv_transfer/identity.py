"""What one end of a hand-over says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KVIdentity:
    instance_id: str
    incarnation: str  # fresh at each start
    kv_fingerprint: str  # what must fit before blocks are exchanged (negotiate.py)
    host: str = "127.0.0.1"  # address of this instance that others reach
