"""Counters of a hand-over's ends as one flat object, for `/debug/kv`."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any


def as_object(counters: Any) -> dict[str, Any]:
    """Field by field. `dataclasses.asdict` would rebuild a `Counter` from its items, and count
    those.
    """
    values = {field.name: getattr(counters, field.name) for field in fields(counters)}
    return {
        name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()
    }
