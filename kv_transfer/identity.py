"""What one end of a hand-over says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from common.fingerprint import differing_fields


@dataclass(frozen=True, slots=True)
class KVIdentity:
    instance_id: str
    incarnation: str  # fresh at each start
    kv_fingerprint: str  # instances exchange blocks only if equal
    host: str = "127.0.0.1"  # address of this instance that others reach


def mismatch(ours: str, theirs: str) -> str | None:
    """Why two fingerprints do not match, naming the fields; None if they are equal."""
    differing = [
        f"{name} ({left}, {right})" for name, left, right in differing_fields(ours, theirs)
    ]
    return f"differing {', '.join(differing)}" if differing else None
