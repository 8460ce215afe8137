"""Requests that may be aborted by the name their client gave them, within one tenant."""

from __future__ import annotations

import asyncio

from common.api.errors import HttpError


class Running:
    def __init__(self) -> None:
        self._events: dict[tuple[str, str], set[asyncio.Event]] = {}

    def abort(self, tenant: str, label: str) -> None:
        """Unknown names are ignored: the request may just have ended."""
        for event in self._events.get((tenant, label), ()):
            event.set()

    async def watch(self, tenant: str, label: str) -> Exception:
        """Waits until the request is aborted; cancel it when the request has ended."""
        event = asyncio.Event()
        events = self._events.setdefault((tenant, label), set())
        events.add(event)
        try:
            await event.wait()
        finally:
            events.discard(event)
            if not events:
                self._events.pop((tenant, label), None)
        return HttpError(400, "request_aborted", "the request was aborted")
