"""A decode instance of the simulation: the real claim, pulse and block pool; pretend copies.

A copy takes its time, piece by piece, and reads whatever is in the producer's memory by then. One
that writes through no gate cannot be stopped, as a network card could not.
"""

from __future__ import annotations

from typing import Any

from common.engine.block_pool import BlockPool
from common.errors import CorruptBlock, PeerLost, TransferError
from kv_transfer.claim import SETTLE_S, Claim, Connect, Copy, End, Landed, Send, StopCopy
from kv_transfer.counters import ConsumerCounters
from kv_transfer.handles import HandleKey, check_content
from kv_transfer.identity import KVIdentity
from kv_transfer.messages import Opened
from kv_transfer.negotiate import check_handle
from kv_transfer.pulse import Pulse, renewals
from kv_transfer.token_map import Target, num_blocks
from tests.kv_transfer.sim_clock import Node
from tests.kv_transfer.sim_producer import SLOT_BYTES, checksum

FETCH_S = 20.0  # the deadline of a fetch, from its start


class SimLink:
    """One connection to one incarnation of a producer."""

    def __init__(self, consumer, handle):
        self.consumer = consumer
        self._dial()
        self.producer_name = handle.side_channel.removeprefix("tcp://")
        self.claims = {}  # token: Fetch
        self.is_lost = False
        self._pulse = Pulse(3.0)
        self._beats = 0

    def _dial(self):
        consumer = self.consumer
        consumer.num_links += 1
        self.peer = f"{consumer.name}-{consumer.life}-{consumer.num_links}".encode()
        consumer.world.links[self.peer] = self

    def replace(self):
        """The connection has broken; what is under way on it is lost."""
        if not self.claims:
            self.lose()
            return
        del self.consumer.world.links[self.peer]
        self._dial()
        for fetch in list(self.claims.values()):
            fetch.do(fetch.claim.reopen(self.consumer.clock.now))

    def open(self, fetch):
        self.claims[fetch.claim.token] = fetch
        fetch.do(fetch.claim.start())
        if len(self.claims) == 1:
            self._start_beats()

    def receive(self, message):
        self._pulse.heard()
        fetch = self.claims.get(getattr(message, "claim", ""))
        if fetch is None:
            return
        if isinstance(message, Opened) and not self._pulse.fits(message.lease_s):
            self._start_beats()
        fetch.do(fetch.claim.on_message(message, self.consumer.clock.now))

    def lose(self):
        self.is_lost = True
        for fetch in list(self.claims.values()):
            lost = PeerLost("the producer has stopped answering")
            fetch.do(fetch.claim.fail(lost, self.consumer.clock.now))

    def _start_beats(self):
        self._beats += 1
        self._pulse.start()
        self._wait(self._beats)

    def _wait(self, number):
        self.consumer.after(self._pulse.beat_s, lambda: self._beat(number))

    def _beat(self, number):
        if number != self._beats or not self.claims or self.is_lost:
            return
        if not self._pulse.beat():
            self.lose()
            return
        for renew in renewals(self.claims):
            self.consumer.world.to_producer(self, renew)
        self._wait(number)


class Consumer(Node):
    def __init__(
        self, clock, name, world, *, block_size, num_pool_blocks, writes_through_gate, key
    ):
        super().__init__(clock, name)
        self.world = world
        self.block_size = block_size
        self.writes_through_gate = writes_through_gate
        self._num_pool_blocks = num_pool_blocks
        self.keys = HandleKey(key)
        self.num_links = 0
        self.boot()

    def boot(self):
        self.is_up = True
        self.pool = BlockPool(self._num_pool_blocks, self.clock.read)
        self.memory: list[list[Any]] = [
            [None] * self.block_size for _ in range(self._num_pool_blocks)
        ]
        self.writers = {}  # block: the fetch whose bytes may land there
        self.links = {}
        self.fetches = []
        self.counters = ConsumerCounters()
        self.info = KVIdentity(
            self.name, f"{self.name}-{self.life}", self.world.fingerprint(self.block_size)
        )

    def link(self, handle):
        key = (handle.side_channel, handle.incarnation)
        link = self.links.get(key)
        if link is None or link.is_lost:
            link = self.links[key] = SimLink(self, handle)
        return link

    def decode(self, prompt, handle):
        """Load the KV that the handle stands for, or else compute it here."""
        fetch = Fetch(self, prompt, handle)
        self.fetches.append(fetch)
        fetch.start()
        return fetch

    def check_at_rest(self):
        self.pool.audit()
        assert self.pool.available == self.pool.num_blocks, f"{self.name} leaks: {self.pool}"
        assert not self.writers, f"{self.name}: blocks without a fetch are still written to"
        for fetch in self.fetches:
            assert fetch.outcome is not None, f"{fetch.name} never ended"
            assert fetch.claim is None or fetch.num_ends == 1, (
                f"{fetch.name}: {fetch.num_ends} ends"
            )


class Fetch:
    """What decode/worker.py does with one request."""

    def __init__(self, consumer, prompt, handle):
        self.consumer = consumer
        self.prompt = prompt
        self.handle = handle
        self.clock = consumer.clock
        self.name = f"{consumer.name} {prompt.request_id}"
        self.claim: Any = None  # None: refused before anything was sent
        self.outcome = None  # loaded, recomputed
        self.error = None
        self.num_ends = 0
        self.blocks: Any = None  # ours: skipped ones, then those to load
        self._deadline = self.clock.now + FETCH_S
        self._source: Any = None  # the producer's memory, once connected
        self._is_gate_open = False
        self._has_ended = False

    def start(self):
        consumer, handle = self.consumer, self.handle
        try:
            check_content(handle, self.prompt.token_ids, "")
            remote = check_handle(
                handle, consumer.info, "sim", consumer.block_size * SLOT_BYTES, consumer.keys
            )
        except TransferError as error:
            self._recompute(error)
            return
        token = f"{self.clock.random.getrandbits(128):032x}"
        self.claim = Claim(handle, remote, consumer.info, self._deadline, consumer.counters, token)
        self._link = consumer.link(handle)
        self._link.open(self)
        consumer.after(self.clock.random.choice((0.0, 0.01, 2.0, 8.0)), self._admit)
        consumer.after(FETCH_S + 0.001, self._tick)

    def _tick(self):
        if self._has_ended:
            return
        self.do(self.claim.tick(self.clock.now))
        if not self._has_ended:
            late_s = self.clock.now - self._deadline
            assert late_s < SETTLE_S + 0.1, f"{self.name} hangs"
            self.consumer.after(0.05, self._tick)

    def _admit(self):
        if self._has_ended:
            return
        count = num_blocks(len(self.prompt.token_ids), self.consumer.block_size)
        self.blocks = self.consumer.pool.reserve(count, self.name)
        if self.blocks is None:
            self.consumer.after(0.25, self._admit)
            return
        skip = self.clock.random.choice((0, 0, 0, 1, count))  # the prefix cache had these
        for block in self.blocks:
            assert block not in self.consumer.writers, f"{self.name}: {block} may be written to"
        for index, block in enumerate(self.blocks[:skip]):
            self._fill(block, index)
        target = tuple(self.blocks[skip:])
        self.consumer.writers |= dict.fromkeys(target, self)
        first = skip * self.consumer.block_size
        self.do(self.claim.read(Target(target, first, self.consumer.block_size)))

    def _fill(self, block, index):
        size = self.consumer.block_size
        self.consumer.memory[block] = [
            (self.prompt.request_id, position)
            for position in range(index * size, index * size + size)
        ]

    # --- the claim's actions -----------------------------------------------------------------

    def do(self, actions):
        world = self.consumer.world
        for action in actions:
            match action:
                case Send(message=message):
                    world.to_producer(self._link, message)
                case Connect(opened=opened):
                    self.consumer.after(0.001, lambda opened=opened: self._connect(opened))
                case Copy():
                    self._is_gate_open = True
                    CopyRun(self, action).start()
                case StopCopy():
                    self._is_gate_open = False
                case End():
                    self._end(action)
                case Landed(block_ids=block_ids):
                    self._hand_back(block_ids)

    def _connect(self, opened):
        producer = self.consumer.world.producers[self._link.producer_name]
        named = opened.region.decode("utf-8", "replace")
        if self.consumer.world.happens("connecting fails") or named != producer.incarnation:
            error = TransferError("no connection")
            self.do(self.claim.not_connected(error, self.clock.now))
            return
        self._source = producer.memory  # as a mapping: it outlives its process
        self.do(self.claim.connected(self.consumer.writes_through_gate))

    def _end(self, end):
        self.num_ends += 1
        self._has_ended = True
        del self._link.claims[self.claim.token]
        late_s = self.clock.now - self._deadline
        assert late_s < SETTLE_S + 0.1, f"{self.name} ended {late_s:.1f} s late"
        if end.error is not None:
            quarantine = end.error.quarantine
            kept = [block for block in self.blocks or () if block not in quarantine]
            self._hand_back(kept)
            self._recompute(end.error)
            return
        self._verify(end.first_token)
        self.outcome = "loaded"
        self.consumer.log(f"{self.prompt.request_id}: loaded")
        for block in self.blocks:
            self.consumer.writers.pop(block, None)
        self.consumer.pool.adopt(self.blocks, self.name)
        self.consumer.after(
            self.clock.random.uniform(0, 1), lambda: self.consumer.pool.release(self.blocks)
        )

    def _verify(self, first_token):
        """The heart of it: never a wrong token."""
        assert first_token == self.prompt.first_token, f"{self.name}: first token {first_token}"
        size = self.consumer.block_size
        for position in range(len(self.prompt.token_ids)):
            block, slot = self.blocks[position // size], position % size
            found = self.consumer.memory[block][slot]
            assert found == (self.prompt.request_id, position), f"{self.name} {position}: {found}"

    def _hand_back(self, blocks):
        for block in blocks:
            self.consumer.writers.pop(block, None)
        self.consumer.pool.free(list(blocks))

    def _recompute(self, error):
        self.outcome, self.error = "recomputed", error
        self.consumer.log(f"{self.prompt.request_id}: recomputed, {error.code}: {error.message}")

    def cancel(self):
        """The client has gone."""
        if not self._has_ended and self.claim is not None:
            self.do(self.claim.cancel(self.clock.now))

    # --- a copy's ends -----------------------------------------------------------------------

    def copied(self):
        self.do(self.claim.copied())

    def not_copied(self, error):
        self.do(self.claim.not_copied(error, self.clock.now))

    @property
    def is_gate_open(self):
        return self._is_gate_open

    @property
    def source(self):
        return self._source


class CopyRun:
    """Whole blocks first into a landing place of their own if sizes differ, as staging.py does."""

    def __init__(self, fetch, copy):
        self._fetch = fetch
        self._copy = copy
        self._source = fetch.source
        self._read = {}  # index in `remote`: the block's slots, as they were read
        self._waiting = list(range(len(copy.remote)))

    def start(self):
        self._next()

    def _next(self):
        random = self._fetch.clock.random
        pause_s = random.choice((0.0, 0.0, 0.001, 0.1))
        if self._fetch.consumer.world.happens("a copy stalls"):
            pause_s = random.uniform(1, 6)
        self._fetch.consumer.after(pause_s, self._step)

    def _step(self):
        fetch, world = self._fetch, self._fetch.consumer.world
        must_stop = fetch.consumer.writes_through_gate and not fetch.is_gate_open
        if must_stop or world.happens("a copy fails"):
            fetch.not_copied(TransferError("stopped"))
            return
        if not self._waiting:
            self._compare()
            return
        index = self._waiting.pop(0)
        slots = list(self._source[self._copy.remote[index]])
        self._read[index] = slots
        if world.uses_checksums and world.happens("a bit flips in a copy"):
            slots[fetch.clock.random.randrange(len(slots))] = ("flipped", 0)
        for piece in self._copy.pieces:
            if piece.source == index:
                self._land(piece, slots)
        self._next()

    def _land(self, piece, slots):
        consumer = self._fetch.consumer
        owner = consumer.writers.get(piece.target)
        assert owner is self._fetch, f"{self._fetch.name}: a late byte in block {piece.target}"
        for i in range(piece.num_tokens):
            consumer.memory[piece.target][piece.target_at + i] = slots[piece.source_at + i]

    def _compare(self):
        sums = self._copy.checksums
        if sums and tuple(checksum(self._read[i]) for i in range(len(sums))) != sums:
            self._fetch.not_copied(CorruptBlock("a block was damaged on its way"))
        else:
            self._fetch.copied()
