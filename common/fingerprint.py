"""Fingerprints as `name=value,name=value`: compared whole, explained field by field."""

from __future__ import annotations

# block_size: the consumer splits and merges what it reads. tensor_parallel: how many ranks wrote a
# block changes the rounding of what is in it, not where it is.
CONVERTIBLE = frozenset({"block_size", "tensor_parallel"})


def differing_fields(ours: str, theirs: str) -> list[tuple[str, str, str]]:
    """(name, ours, theirs) wherever two fingerprints differ; empty if they are equal.

    A fingerprint that is no list of fields counts as one field named `kv_fingerprint`.
    """
    if ours == theirs:
        return []
    left, right = _fields(ours), _fields(theirs)
    names = [*left, *(name for name in right if name not in left)]
    return [
        (name, left.get(name, "absent"), right.get(name, "absent"))
        for name in names
        if left.get(name) != right.get(name)
    ]


def incompatible_fields(ours: str, theirs: str) -> list[tuple[str, str, str]]:
    """The differing fields that no end can convert: with any of them, no block is exchanged."""
    return [found for found in differing_fields(ours, theirs) if found[0] not in CONVERTIBLE]


def block_size_of(fingerprint: str) -> int:
    """Tokens of a block; 0 if the fingerprint does not say."""
    found = _fields(fingerprint).get("block_size", "")
    return int(found) if found.isdecimal() and len(found) < 10 else 0


def _fields(fingerprint: str) -> dict[str, str]:
    parts = [part.partition("=") for part in fingerprint.split(",")]
    if all(separator for _, separator, _ in parts):
        return {name.strip(): value.strip() for name, _, value in parts}
    return {"kv_fingerprint": fingerprint}
