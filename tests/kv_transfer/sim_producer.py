"""A prefill instance of the simulation: the real protocol and the real block pool, around them a
pretend engine that fills blocks with provenance instead of KV.

What lies in a slot of a block is `(request id, position)`, so that whoever reads it can tell whose
it is and where it belongs.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from common.engine.block_pool import BlockPool
from common.errors import TransferError
from kv_transfer.batch import Batch
from kv_transfer.handles import HandleKey, content_of
from kv_transfer.identity import KVIdentity
from kv_transfer.producer_protocol import Described, Free, ProducerProtocol, Send
from kv_transfer.token_map import num_blocks
from tests.kv_transfer.sim_clock import Node

SLOT_BYTES = 8


@dataclass(frozen=True)
class Prompt:
    request_id: str
    token_ids: tuple[int, ...]
    first_token: int


@dataclass(frozen=True)
class Filled:
    request_id: str
    first: int
    block_ids: tuple[int, ...]
    epochs: tuple[int, ...]
    hashes: tuple[str, ...]
    is_last: bool


def checksum(slots):
    return zlib.crc32(repr(slots).encode())


class Producer(Node):
    def __init__(self, clock, name, world, *, block_size, num_pool_blocks, lease_s, key):
        super().__init__(clock, name)
        self.world = world
        self.block_size = block_size
        self._num_pool_blocks = num_pool_blocks
        self._lease_s = lease_s
        self._key = key
        self._num_boots = 0
        self.past = []  # protocols of earlier lives
        self.boot()

    def boot(self):
        self._num_boots += 1
        self.is_up = True
        self.pool = BlockPool(self._num_pool_blocks, self.clock.read)
        self.memory: list[list[Any]] = [
            [None] * self.block_size for _ in range(self._num_pool_blocks)
        ]
        self.incarnation = f"{self.name}-{self._num_boots}"
        info = KVIdentity(self.name, self.incarnation, self.world.fingerprint(self.block_size))
        self.protocol = ProducerProtocol(
            info,
            Described(
                "sim",
                self._num_pool_blocks,
                self.block_size * SLOT_BYTES,
                self.incarnation.encode(),
                False,
            ),
            f"tcp://{self.name}",
            self._lease_s,
            self.pool.epochs,
            HandleKey(self._key),
            random_hex=lambda num_bytes: (
                f"{self.clock.random.getrandbits(8 * num_bytes):0{2 * num_bytes}x}"
            ),
        )
        self._running: dict[str, Any] = {}  # request id: its blocks, while its prefill runs
        self._published_at = 0.0

    def kill(self):
        super().kill()
        self.past.append(self.protocol)

    # --- prefill -----------------------------------------------------------------------------

    def prefill(self, prompt, attempts=20):
        count = num_blocks(len(prompt.token_ids), self.block_size)
        blocks = self.pool.allocate(count, prompt.request_id)
        if blocks is None:
            self.log(f"{prompt.request_id}: no room")
            if attempts:
                self.after(0.3, lambda: self.prefill(prompt, attempts - 1))
            return
        handle = self.protocol.offer(
            prompt.request_id,
            len(prompt.token_ids),
            count,
            content_of(prompt.token_ids, ""),
            self.clock.now,
        )
        self._running[prompt.request_id] = blocks
        self.world.accepted(self, prompt, handle)
        self.after(self.clock.random.uniform(0, 0.05), lambda: self._chunk(prompt, blocks, 0))

    def _chunk(self, prompt, blocks, start):
        """Compute some more tokens, and offer what has become full."""
        name, total = prompt.request_id, len(prompt.token_ids)
        if id(self._running.get(name)) != id(blocks):
            return  # aborted
        end = min(total, start + self.clock.random.randint(1, total))
        for position in range(start, end):
            block, slot = divmod(position, self.block_size)
            self.memory[blocks[block]][slot] = (name, position)
        is_last = end == total
        first = start // self.block_size
        stop = len(blocks) if is_last else end // self.block_size
        if stop > first or is_last:
            fresh = tuple(blocks[first:stop])
            self.pool.hold(fresh, "offer")
            filled = Filled(name, first, fresh, self.pool.epochs(fresh), (), is_last)
            offer = self.protocol.leases.of_request(name)
            self._publish(Batch(offer, filled, prompt.first_token if is_last else None))
        if is_last:
            self._stop_running(name)
        else:
            self.after(
                self.clock.random.uniform(0.001, 0.3), lambda: self._chunk(prompt, blocks, end)
            )

    def _publish(self, batch):
        """In order, after a while."""
        sums = ()
        if self.world.uses_checksums:
            sums = tuple(checksum(self.memory[block]) for block in batch.filled.block_ids)
        batch = Batch(batch.offer, batch.filled, batch.first_token, sums)
        delay = self.clock.random.choice((0.0, 0.0, 0.01, 0.2))
        self._published_at = max(self._published_at, self.clock.now + delay)

        def publish():
            if self.world.happens("publishing fails"):
                self.do(self.protocol.drop(batch, TransferError("disk full")))
            else:
                self.do(self.protocol.admit(batch, self.clock.now))

        self.after(self._published_at - self.clock.now, publish)

    def abort(self, request_id):
        self.log(f"{request_id}: aborted")
        self._stop_running(request_id)
        self.do(self.protocol.release(request_id))

    def _stop_running(self, request_id):
        blocks = self._running.pop(request_id, None)
        if blocks is not None:
            self.pool.release(blocks)

    def strangers(self):
        """Another sequence comes, writes into free blocks, and leaves."""
        taken = self.pool.allocate(min(self.pool.available, 3), "stranger")
        if taken:
            for block in taken:
                self.memory[block][:] = [("stranger", self.clock.now)] * self.block_size
            self.after(self.clock.random.uniform(0, 0.5), lambda: self.pool.release(taken))

    # --- the protocol's events and actions ---------------------------------------------------

    def receive(self, peer, message):
        self.do(self.protocol.received(peer, message, self.clock.now))

    def do(self, actions):
        for action in actions:
            match action:
                case Send(peer=peer, message=message):
                    self.world.to_consumer(self, peer, message)
                case Free(block_ids=block_ids, request_id=name, has_expired=has_expired):
                    self.log(f"{name}: free {block_ids}{' (expired)' if has_expired else ''}")
                    self.pool.free(block_ids)
        deadline = self.protocol.next_deadline()
        if deadline != float("inf"):
            self.after(max(0.0, deadline - self.clock.now), self._tick)

    def _tick(self):
        actions = self.protocol.tick(self.clock.now)
        if actions:
            self.do(actions)
        elif self.protocol.next_deadline() < self.clock.now + 0.001:  # rounding
            self.after(0.001, self._tick)

    # --- what must be so at the end ----------------------------------------------------------

    def check_at_rest(self):
        self.pool.audit()
        assert self.pool.available == self.pool.num_blocks, f"{self.name} leaks: {self.pool}"
        assert not self.protocol.leases.offers(), f"{self.name}: an offer has not ended"
        counts = self.protocol.counters
        ended = counts.released + counts.expired + counts.aborted
        assert counts.offered == ended, f"{self.name}: {counts}"
        assert self.protocol.num_readers == 0
