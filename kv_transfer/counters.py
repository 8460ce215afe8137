"""Counters of a hand-over's ends: plain numbers that only grow, for `/metrics` and `/debug/kv`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from kv_transfer.transport.base import Transport


@dataclass(slots=True)
class ProducerCounters:
    offered: int = 0  # offers
    released: int = 0  # offers read to the end by their consumer
    expired: int = 0
    aborted: int = 0
    bytes_released: int = 0  # of the blocks in released offers
    failures: Counter[str] = field(default_factory=Counter)  # publishing failed, by error code
    refused: Counter[str] = field(default_factory=Counter)  # claims refused, by error code


@dataclass(slots=True)
class ConsumerCounters:
    fetched: int = 0
    bytes_read: int = 0
    transfer_s: float = 0.0  # sum over fetches, from claim to first token
    cancelled: int = 0
    checksum_mismatches: int = 0
    retries: Counter[str] = field(default_factory=Counter)  # copied again, by error code
    failures: Counter[str] = field(default_factory=Counter)  # of whole fetches, by error code


def as_object(counters: Any) -> dict[str, Any]:
    """Field by field. `dataclasses.asdict` would rebuild a `Counter` from its items, and count
    those.
    """
    values = {field.name: getattr(counters, field.name) for field in fields(counters)}
    return {
        name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()
    }


def transport_counters(transport: Transport) -> dict[str, Callable[[], float]]:
    """A transport's own, each to be read by itself."""
    return {name: partial(_read, transport, name) for name in transport.counters()}


def _read(transport: Transport, name: str) -> float:
    return transport.counters()[name]
