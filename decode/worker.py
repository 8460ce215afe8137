"""What a decode instance does with a request: admit, fetch the KV, adopt it, decode.

RunDecode ─▶ admission (blocks) ─▶ fetch ─▶ adopt ─▶ tokens 1, 2, 3 …
                                     └ failed load: the prompt runs here; token 0 comes twice, the
                                       proxy drops the second, which is equal
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from common.engine.driver import EngineDriver
from common.engine.engine import Engine, StepResult
from common.errors import BadRequest, Overloaded, TransferError
from common.instance.external_router import LoadHere
from common.instance.outbox import Origin, Send
from common.instance.requests import Requests
from common.instance.transfers import Transfers
from common.request import EngineRequest
from common.wire import Abort, KVHandle, RunDecode, RunPrefill, RunWhole
from decode.admission import Admission, Loan
from kv_transfer.consumer import KVConsumer
from kv_transfer.counters import transport_counters
from kv_transfer.handles import check_content
from kv_transfer.held_offer import HeldOffer
from kv_transfer.stored_prefix import StoredPrefix

log = logging.getLogger(__name__)

LOAD_DEADLINE_S = (
    600.0  # queueing and prefill on the other side included; a dead peer is noticed in 3
)


@dataclass(slots=True)
class DecodeCounters:
    loads: int = 0
    recomputes: int = 0
    sent_elsewhere: int = 0  # failed loads for which there was another source


class DecodeWorker:
    """`consumer` is None for `--role both`: then every prompt comes whole."""

    side_channel = ""  # this end calls, it is not called

    def __init__(
        self,
        driver: EngineDriver,
        consumer: KVConsumer | None,
        send: Send,
        *,
        max_num_waiting: int,
        transfers: Transfers | None = None,
        stored: StoredPrefix | None = None,
    ) -> None:
        """`transfers`: told what each load cost. `stored`: prompts' beginnings may be loaded from
        there instead of computed."""
        self._driver = driver
        self._consumer = consumer
        self._max_num_waiting = max_num_waiting
        self._transfers = transfers or Transfers()
        self._stored = stored
        self._admission = Admission(driver)
        self.requests = Requests(driver, send)
        self.counts = DecodeCounters()
        self.num_loading = 0
        driver.listeners.append(self._on_step)

    def handle(self, peer: bytes, message: Any) -> None:
        match message:
            case RunDecode(request=request, handle=handle, attempt=attempt):
                origin, recomputes = Origin(peer, attempt), not message.has_other_source
                self.requests.start(
                    request.request_id,
                    origin,
                    lambda: self._decode(request, handle, recomputes=recomputes),
                )
            case LoadHere(request=request, handle=handle, attempt=attempt):
                origin = Origin(peer, attempt)
                self.requests.start(
                    request.request_id, origin, lambda: self._decode_from_start(request, handle)
                )
            case RunWhole(request=request, attempt=attempt):
                origin = Origin(peer, attempt)
                self.requests.start(request.request_id, origin, lambda: self._whole(request))
            case RunPrefill(request=request, attempt=attempt):
                origin = Origin(peer, attempt)
                self.requests.start(request.request_id, origin, _refuse_prefill)
            case Abort(request_id=request_id):
                self.abort(request_id)

    def abort(self, request_id: str) -> None:
        self.requests.stop(request_id)
        self._admission.space_freed()

    def peer_lost(self, peer: bytes) -> None:
        self.requests.stop_peer(peer)
        self._admission.space_freed()

    def num_open(self) -> int:
        return len(self.requests.outbox)

    def num_waiting(self) -> int:
        return self._admission.num_waiting

    def ledger(self) -> dict[str, Any]:
        if self._consumer is None:
            return {"transfers": {}, "loads": []}
        return {"transfers": self._consumer.snapshot(), "loads": self._consumer.ledger()}

    def gauges(self) -> dict[str, Callable[[], float]]:
        consumer = self._consumer
        if consumer is None:
            return {"kv_leases": lambda: 0, "kv_transfers_pending": lambda: 0}
        return {
            "kv_leases": lambda: 0,
            "kv_transfers_pending": lambda: consumer.num_transfers,
        }

    def counters(self) -> dict[str, Callable[[], float]]:
        found: dict[str, Callable[[], float]] = {
            "kv_loads": lambda: self.counts.loads,
            "recomputes": lambda: self.counts.recomputes,
            "kv_loads_sent_elsewhere": lambda: self.counts.sent_elsewhere,
        }
        if self._consumer is not None:
            counts = self._consumer.counters
            found |= {
                "kv_received_bytes": lambda: counts.bytes_read,
                "kv_transfer_seconds": lambda: counts.transfer_s,
                "kv_transfers_cancelled": lambda: counts.cancelled,
                "kv_transfer_retries": lambda: sum(counts.retries.values()),
                "kv_checksum_mismatch": lambda: counts.checksum_mismatches,
            }
            found |= transport_counters(self._consumer.transport)
        stored = self._stored
        if stored is not None:
            found["kv_stored_prefix_blocks"] = lambda: stored.num_blocks
        return found

    async def close(self) -> None:
        await self.requests.close()
        if self._stored is not None:
            await self._stored.close()
        if self._consumer is not None:
            await self._consumer.close()
        self._driver.listeners.remove(self._on_step)

    async def _whole(self, request: EngineRequest) -> None:
        await self._load_stored(request)
        await self.requests.add(request)
        self.requests.outbox.accept(request.request_id)

    async def _load_stored(self, request: EngineRequest) -> None:
        if self._stored is not None:
            tokens = request.prompt_token_ids + request.output_token_ids
            await self._stored.load(tokens, request.kv_salt)

    async def _decode_from_start(self, request: EngineRequest, handle: KVHandle) -> None:
        """For a router that keeps the first token of nobody: it is sampled here, as asked here."""
        if request.sampling.prompt_logprobs is None:
            await self._decode(request, handle, samples_first=True)
            return
        if self._consumer is not None:  # they are not in the KV; let the producer free its blocks
            with suppress(TransferError):
                async with self._consumer.hold(handle, time.monotonic() + LOAD_DEADLINE_S):
                    pass
        await self._whole(request)

    async def _decode(
        self,
        request: EngineRequest,
        handle: KVHandle,
        *,
        samples_first: bool = False,
        recomputes: bool = True,
    ) -> None:
        """`recomputes`: what does not come is computed here; else whoever asked is told."""
        if self._admission.num_waiting >= self._max_num_waiting:
            raise Overloaded("too many requests wait for KV blocks on this instance")
        self.requests.outbox.accept(request.request_id)
        constraint = request.sampling.constraint
        if constraint is not None:  # compiled while the KV comes
            self._driver.post(lambda engine: engine.prepare(constraint))
        self.num_loading += 1
        try:
            await self._load(request, handle, samples_first)
        except TransferError as error:
            log.warning(
                "request_id=%s KV load failed (%s: %s): %s",
                request.request_id,
                error.code,
                error.message,
                "recomputing" if recomputes else "somebody else has it",
            )
            self._transfers.failed(error.code)
            if not recomputes:
                self.counts.sent_elsewhere += 1
                raise
            self.counts.recomputes += 1
            await self._load_stored(request)
            await self.requests.add(request)
        finally:
            self.num_loading -= 1

    async def _load(self, request: EngineRequest, handle: KVHandle, samples_first: bool) -> None:
        """Claim, admit, read, adopt. On any failure the blocks are given back, once.

        The claim comes first: it keeps the blocks over there while blocks here are waited for.
        """
        if self._consumer is None:
            raise TransferError("this instance has no KV connector")
        deadline = time.monotonic() + LOAD_DEADLINE_S
        tokens = request.prompt_token_ids + request.output_token_ids
        check_content(handle, tokens, request.kv_salt)
        num_blocks = self._consumer.num_blocks(len(tokens))
        if samples_first:  # the last token is computed here: into a block that nobody shares
            tokens = tokens[:-1]
        async with self._consumer.hold(handle, deadline) as held:
            loan = await self._admission.enter(
                tokens, request.kv_salt, num_blocks, deadline, held.ended
            )
            if loan is None:  # there is nothing to wait for any more
                raise held.failure()
            try:
                first = await held.arrive(loan.block_ids[loan.num_cached :], loan.num_cached)
            except BaseException as error:
                self._give_back(loan, getattr(error, "quarantine", ()))
                raise
            if not samples_first:
                request = msgspec.structs.replace(
                    request, output_token_ids=(*request.output_token_ids, first)
                )
            await self._adopt(request, loan, held)
        self.counts.loads += 1

    async def _adopt(self, request: EngineRequest, loan: Loan, held: HeldOffer) -> None:
        """The blocks become the sequence's, which runs on while the producer is asked whether they
        are right: until it has said so nobody sees a token.

        One command to the engine, so that a cancellation here cannot leave them without an owner;
        an abort is posted after it and finds the sequence.
        """

        def adopt(engine: Engine) -> None:
            try:
                engine.adopt(request, loan.block_ids, is_confirmed=False)
            except BaseException:
                engine.free(loan.block_ids)
                raise

        outbox, request_id = self.requests.outbox, request.request_id
        outbox.hold(request_id)
        await self._driver.call(adopt)
        try:
            await held.confirmed()
        except TransferError:  # what came from it comes before the answer to this
            await self._driver.call(lambda engine: engine.abort(request_id))
            outbox.discard(request_id)
            raise
        self._driver.post(lambda engine: engine.confirm(request_id))
        told = held.report.timings()
        self._transfers.loaded(told)
        outbox.tell(request_id, told)
        outbox.release(request_id)

    def _give_back(self, loan: Loan, quarantine: Collection[int] = ()) -> None:
        """`quarantine`: blocks that bytes may still land in; `landed` frees those."""
        blocks = [block for block in loan.block_ids if block not in quarantine]
        self._driver.post(lambda engine: engine.free(blocks))
        self._admission.space_freed()

    def landed(self, block_ids: list[int]) -> None:
        """Nothing is written to these blocks any more."""
        self._driver.post(lambda engine: engine.free(block_ids))
        self._admission.space_freed()

    def _on_step(self, result: StepResult) -> None:
        self.requests.on_step(result)
        self._admission.space_freed()


async def _refuse_prefill() -> None:
    """A proxy that meant the role before has been greeted anew by then, and asks elsewhere."""
    raise BadRequest("this is a decode instance: it offers no KV")
