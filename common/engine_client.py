"""The seam between the API front end and whatever runs the tokens: a local engine, or the fleet.

`LocalEngine` (an instance) and `Fleet` (the proxy) both are an `EngineClient`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Protocol

from common.request import EngineRequest, PooledOutput, TokenEvent
from common.wire import AdapterInfo


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What clients may know of a served model."""

    name: str
    max_model_len: int
    created: int  # Unix seconds
    base: str = ""  # of an adapter: the card whose text side is its own; the rest of it below
    root: str = ""  # where it was loaded from
    parent: str = ""  # the model that it is an adapter of, as its operator calls it
    adapter: str = ""  # its digest
    pooled: PooledOutput | None = None  # None: it generates


def adapter_card(base: ModelCard, info: AdapterInfo, created: int) -> ModelCard:
    """As its base, but for what is its own."""
    return replace(
        base,
        name=info.name,
        created=created,
        base=base.name,
        root=info.root,
        parent=info.parent,
        adapter=info.digest,
    )


class EngineClient(Protocol):
    def models(self) -> list[ModelCard]:
        """Served models; empty while none is ready."""
        ...

    def is_ready(self) -> bool:
        """Can a request make progress now? `/health` answers 200 or 503 by this."""
        ...

    def generate(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        """Run one sequence to its end and yield its events in order, each token exactly once.

        Ends after the event that carries `finish_reason`. Closing the generator early aborts the
        request everywhere and frees what it held. Raises an `XpydError` if the request is refused
        (before the first event) or lost (later); never ends silently without a `finish_reason`.
        """
        ...
