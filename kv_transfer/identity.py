"""What one end of a hand-over says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KVIdentity:
    instance_id: str
    incarnation: str  # fresh at each start
    kv_fingerprint: str  # instances exchange blocks only if equal


def mismatch(ours: str, theirs: str) -> str | None:
    """Why two fingerprints do not match, naming the fields where they are `name=value` lists
    separated by commas or semicolons; None if they are equal."""
    if ours == theirs:
        return None
    left, right = _fields(ours), _fields(theirs)
    if not left or not right:
        return "differing kv_fingerprint"
    differing = [
        f"{name} ({left.get(name, 'absent')}, {right.get(name, 'absent')})"
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    ]
    return "differing " + (", ".join(differing) or "kv_fingerprint")


def _fields(fingerprint: str) -> dict[str, str]:
    parts = [part.partition("=") for part in fingerprint.replace(";", ",").split(",")]
    if not all(separator for _, separator, _ in parts):
        return {}
    return {name.strip(): value.strip() for name, _, value in parts}
