"""What a prefill instance does with a request: run the prompt, offer its blocks, answer the first
token.

    RunPrefill ─▶ offer ─▶ Accepted(handle) ─▶ engine ─┬▶ each filled block joins the offer
                                                       └▶ first token: to proxy and offer

From `extend` on the blocks belong to the producer's lease table, which gives them back to the
engine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from common.engine.driver import EngineDriver
from common.engine.engine import StepResult
from common.errors import BadRequest, Unavailable
from common.instance.external_router import LoadHere
from common.instance.outbox import Origin, Send
from common.instance.requests import Requests
from common.request import EngineRequest
from common.wire import Abort, RunDecode, RunPrefill, RunWhole
from kv_transfer.counters import transport_counters
from kv_transfer.handles import content_of
from kv_transfer.producer import KVProducer
from kv_transfer.stored_prefix import StoredPrefix

SETTLE_S = 5.0  # for a step that is under way when the worker ends


class PrefillWorker:
    def __init__(
        self,
        driver: EngineDriver,
        producer: KVProducer,
        send: Send,
        *,
        block_size: int,
        stored: StoredPrefix | None = None,
    ) -> None:
        """`stored`: prompts' beginnings may be loaded from there instead of computed."""
        self._producer = producer
        self._stored = stored
        self._block_size = block_size
        self.side_channel = producer.endpoint
        self.requests = Requests(driver, send)
        driver.listeners.append(self._on_step)

    def handle(self, peer: bytes, message: Any) -> None:
        match message:
            case RunPrefill(request=request, attempt=attempt):
                origin = Origin(peer, attempt)
                self._producer.release(request.request_id)
                self.requests.start(request.request_id, origin, lambda: self._prefill(message))
            case RunWhole(request=request, attempt=attempt):
                origin = Origin(peer, attempt)
                self.requests.start(request.request_id, origin, lambda: self._whole(message))
            case (
                RunDecode(request=request, attempt=attempt)
                | LoadHere(request=request, attempt=attempt)
            ):
                origin = Origin(peer, attempt)
                self.requests.start(request.request_id, origin, _refuse_decode)
            case Abort(request_id=request_id):
                self.abort(request_id)

    def abort(self, request_id: str) -> None:
        self.requests.stop(request_id)
        self._producer.release(request_id)

    def peer_lost(self, peer: bytes) -> None:
        for request_id in self.requests.stop_peer(peer):
            self._producer.release(request_id)

    def num_open(self) -> int:
        """Requests still running and leases still standing: a drain waits for both."""
        return len(self.requests.outbox) + self._producer.num_leases

    def num_waiting(self) -> int:
        return 0

    def ledger(self) -> dict[str, Any]:
        return {"transfers": self._producer.snapshot(), "leases": self._producer.ledger()}

    def gauges(self) -> dict[str, Callable[[], float]]:
        return {
            "kv_leases": lambda: self._producer.num_leases,
            "kv_transfers_pending": lambda: self._producer.num_transfers,
        }

    def counters(self) -> dict[str, Callable[[], float]]:
        counts = self._producer.counters
        found: dict[str, Callable[[], float]] = {
            "kv_offered": lambda: counts.offered,
            "kv_released": lambda: counts.released,
            "kv_expired": lambda: counts.expired,
            "kv_aborted": lambda: counts.aborted,
            "kv_sent_bytes": lambda: counts.bytes_released,
            "kv_claims_refused": lambda: sum(counts.refused.values()),
            "kv_publish_failures": lambda: sum(counts.failures.values()),
        }
        stored = self._stored
        if stored is not None:
            found["kv_stored_prefix_blocks"] = lambda: stored.num_blocks
        return found | transport_counters(self._producer.transport)

    async def close(self) -> None:
        """The engine may fill blocks until it has heard of the aborts: those come back, too."""
        await self.requests.close()
        if self._stored is not None:
            await self._stored.close()
        with contextlib.suppress(asyncio.TimeoutError, Unavailable):
            await asyncio.wait_for(self.requests.driver.call(lambda engine: None), SETTLE_S)
        await self._producer.close()
        self.requests.driver.listeners.remove(self._on_step)

    async def _prefill(self, message: RunPrefill) -> None:
        request = message.request
        num_tokens = len(request.prompt_token_ids) + len(request.output_token_ids)
        num_blocks = -(-num_tokens // self._block_size)
        content = content_of(request.prompt_token_ids + request.output_token_ids, request.kv_salt)
        handle = self._producer.offer(request.request_id, num_tokens, num_blocks, content)
        self.requests.outbox.attach(request.request_id, handle)
        try:
            await self._load_stored(request)
            await self.requests.add(request, offer=True)
        except BaseException:
            self._producer.release(request.request_id)
            raise
        self.requests.outbox.accept(request.request_id)

    async def _load_stored(self, request: EngineRequest) -> None:
        if self._stored is not None:
            tokens = request.prompt_token_ids + request.output_token_ids
            await self._stored.load(tokens, request.kv_salt)

    async def _whole(self, message: RunWhole) -> None:
        await self._load_stored(message.request)
        await self.requests.add(message.request)
        self.requests.outbox.accept(message.request.request_id)

    def _on_step(self, result: StepResult) -> None:
        first_tokens = {event.request_id: event for event in result.events}
        self.requests.on_step(result)
        for filled in result.filled:
            event = first_tokens.get(filled.request_id) if filled.is_last else None
            self._producer.extend(filled, event.token_ids[0] if event else None)
            if filled.is_last:
                self.requests.outbox.close(filled.request_id)
        for request_id, _ in result.failed:
            self._producer.release(request_id)


async def _refuse_decode() -> None:
    """A proxy that meant the role before has been greeted anew by then, and asks elsewhere."""
    raise BadRequest("this is a prefill instance: it takes no hand-overs")
