"""The seam between the API front end and whatever runs the tokens: a local engine, or the fleet.

`LocalEngine` (an instance) and `Fleet` (the proxy) both are an `EngineClient`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from common.request import EngineRequest, TokenEvent


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What clients may know of a served model."""

    name: str
    max_model_len: int
    created: int  # Unix seconds


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
