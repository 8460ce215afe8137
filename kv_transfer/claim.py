"""One fetch as the consumer sees it, as a plain state machine: events in, actions out.

    OPENING ─Opened─▶ HELD ─our blocks, connected─▶ READING ─all copied─▶ FINISHING ─Finished─┐
       │               │                               │                      │              ▼
       └───────────────┴── refused, lost, late, ───────┴──────────────────────┴──────────▶ ENDED
                           cancelled                   └─ a copy runs: STOPPING ─ it rests ──┘

A link that breaks is replaced: the claim is opened again on the next (`reopen`), and goes on from
where it was if it still stands and the producer says the same as before.

It ends once, by `End`. Whatever stops it while a copy runs, `End` waits until that copy rests: from
then on no byte lands in our blocks. A copy that does not rest in time has its blocks named in the
error's `quarantine`; `Landed` tells when they are safe.

Nothing that the producer says is believed before it has been compared with what is known. No
sockets, no threads, no clock: `now` and `deadline` are monotonic time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from common.errors import (
    CorruptBlock,
    LayoutMismatch,
    LeaseExpired,
    PeerLost,
    TransferError,
    XpydError,
    from_wire,
)
from common.wire import KVHandle, Message
from kv_transfer import messages as m
from kv_transfer.counters import ConsumerCounters
from kv_transfer.identity import KVIdentity
from kv_transfer.token_map import Piece, Target
from kv_transfer.transcript import digest

SETTLE_S = 2.0  # how long a stopped copy may take to come to rest before its blocks are quarantined
MAX_RETRIES = 2  # of a copy, a connection or a link, in one fetch
_FINAL = (LayoutMismatch, LeaseExpired, PeerLost)  # trying again changes nothing


class Phase(str, Enum):
    OPENING = "opening"
    HELD = "held"
    READING = "reading"
    FINISHING = "finishing"
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Send:
    message: Message


@dataclass(frozen=True, slots=True)
class Connect:
    """Open the producer's memory; answer with `connected` or `not_connected`."""

    opened: m.Opened


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the producer's blocks `remote`; answer with `copied` or `not_copied`, once."""

    remote: tuple[int, ...]
    pieces: tuple[Piece, ...]  # where their tokens go
    hashes: tuple[str, ...]  # one per block, or none
    checksums: tuple[int, ...]  # one per block, or none


@dataclass(frozen=True, slots=True)
class StopCopy:
    """The copy that runs is not wanted any more; its answer still is."""


@dataclass(frozen=True, slots=True)
class End:
    """The fetch has ended: with the first token, or with why not."""

    first_token: int | None
    error: TransferError | None


@dataclass(frozen=True, slots=True)
class Landed:
    """Nothing lands any more in these blocks, which had been quarantined."""

    block_ids: tuple[int, ...]


Action = Send | Connect | Copy | StopCopy | End | Landed


@dataclass(frozen=True, slots=True)
class Remote:
    """What the producer's pool must look like, by its handle and by our own layout."""

    block_size: int  # tokens
    block_bytes: int


class Claim:
    def __init__(
        self,
        handle: KVHandle,
        remote: Remote,
        info: KVIdentity,
        deadline: float,
        counters: ConsumerCounters,
        token: str,
    ) -> None:
        """`token`: what names this fetch to the producer, and nobody else can guess."""
        self.token = token
        self.handle = handle
        self.phase = Phase.OPENING
        self.block_ids: list[int] = []  # on the producer, as far as named
        self.remote = remote
        self._info = info
        self._deadline = deadline
        self._counters = counters
        self._opened: m.Opened | None = None
        self._first_token: int | None = None
        self._epochs: list[int] = []
        self._hashes: list[str] = []  # empty unless the transport uses them
        self._checksums: list[int] = []  # empty unless the producer makes them
        self._target: Target | None = None
        self._num_copied = 0  # of the producer's blocks, those that we have already included
        self._copy: Copy | None = None  # that runs
        self._is_connected = False
        self._writes_through_gate = True
        self._num_retries = 0
        self._num_broken = 0  # links
        self._error: TransferError | None = None

    # --- what our side does ------------------------------------------------------------------

    def start(self) -> list[Action]:
        return [self._open()]

    def reopen(self, now: float) -> list[Action]:
        """The link has broken, and here is another to the same place. Who listens there now, and
        whether the lease still stands, the answer tells. A copy that runs goes on."""
        if self.phase in (Phase.STOPPING, Phase.ENDED):
            return []
        error = PeerLost("the connection to the producer broke too often")
        if not self._count_retry(error):
            return self.fail(error, now)
        self._num_broken += 1
        finish = [Send(m.Finish(self.token))] if self.phase is Phase.FINISHING else []
        return [self._open(), *finish]

    def read(self, target: Target) -> list[Action]:
        """Here are our blocks; they are the claim's until it has ended."""
        assert self._target is None, "read once"
        self._target = target
        self._num_copied = min(target.first_token // self.remote.block_size, self.handle.num_blocks)
        return self._advance()

    def connected(self, writes_through_gate: bool) -> list[Action]:
        """The producer's memory is open. `writes_through_gate`: a copy that is stopped writes
        nothing more."""
        self._is_connected = True
        self._writes_through_gate = writes_through_gate
        return self._advance()

    def not_connected(self, error: TransferError, now: float) -> list[Action]:
        if self._opened is not None and self._may_retry(error):
            return [Connect(self._opened)]
        return self.fail(error, now)

    def copied(self) -> list[Action]:
        """All blocks of the copy have come."""
        if self.phase is not Phase.READING:
            return self._rest()
        assert self._copy is not None, "no copy runs"
        self._num_copied += len(self._copy.remote)
        self._copy = None
        return self._advance()

    def not_copied(self, error: TransferError, now: float) -> list[Action]:
        """The copy has failed or was stopped; it writes nothing more."""
        if self.phase is not Phase.READING:
            return self._rest()
        copy, self._copy = self._copy, None
        assert copy is not None, "no copy runs"
        if self._may_retry(error):
            self._copy = copy
            return [copy]
        return self.fail(error, now)

    def cancel(self, now: float) -> list[Action]:
        return self.fail(TransferError("the KV load was cancelled"), now)

    def tick(self, now: float) -> list[Action]:
        """Call it at `next_deadline()`, or now and then."""
        if now < self._deadline or self.phase is Phase.ENDED:
            return []
        if self.phase is not Phase.STOPPING:
            return self.fail(TransferError("the KV load did not end before its deadline"), now)
        if self._writes_through_gate:
            return self._end()
        error = TransferError("the KV load could not be stopped: its blocks are quarantined")
        error.quarantine = self._blocks_being_written()
        self._error = error
        return self._end()

    def next_deadline(self) -> float:
        return math.inf if self.phase is Phase.ENDED else self._deadline

    # --- what the producer says --------------------------------------------------------------

    def on_message(self, message: Any, now: float) -> list[Action]:
        if self.phase in (Phase.STOPPING, Phase.ENDED):
            return []  # for example the refusal of a heartbeat that crossed the confirmation
        try:
            match message:
                case m.Opened():
                    return self._on_opened(message)
                case m.Ready():
                    return self._on_ready(message)
                case m.Finished():
                    return self._on_finished(message)
                case m.Refused(code=code, message=text):
                    return self.fail(_as_transfer_error(from_wire(code, text)), now)
        except TransferError as error:
            return self.fail(error, now)
        return []

    def fail(self, error: TransferError, now: float) -> list[Action]:
        """For whatever reason there is nothing more to hope for. The first reason counts."""
        if self.phase in (Phase.STOPPING, Phase.ENDED):
            return []
        self._error = error
        if self._copy is None:
            return self._end()
        self.phase, self._deadline = Phase.STOPPING, now + SETTLE_S
        return [StopCopy()]

    def _on_opened(self, opened: m.Opened) -> list[Action]:
        if self._opened is not None:
            if opened != self._opened:
                raise TransferError("the producer has opened the claim twice")
            return []
        if opened.block_bytes != self.remote.block_bytes:
            raise LayoutMismatch(
                f"block_bytes is {opened.block_bytes} there, not {self.remote.block_bytes}"
            )
        self._opened = opened
        self.phase = Phase.HELD
        return [Connect(opened)]

    def _on_ready(self, ready: m.Ready) -> list[Action]:
        if self._num_broken:
            told_again, ready = self._without_known(ready)
            if told_again:
                return []
        end = ready.first + len(ready.block_ids)
        if self._opened is None or ready.first != len(self.block_ids) or self.is_complete:
            raise TransferError("the producer's blocks came out of order")
        if len(ready.epochs) != len(ready.block_ids) or end > self.handle.num_blocks:
            raise TransferError("the producer's block list is malformed")
        if not all(
            len(known) + len(more) in (0, end)  # for every block so far, or for none
            for known, more in ((self._hashes, ready.hashes), (self._checksums, ready.checksums))
        ):
            raise TransferError("the producer's block list is malformed")
        if any(block >= self._opened.num_blocks for block in ready.block_ids):
            raise TransferError("the producer named a block outside its pool")
        is_whole = end == self.handle.num_blocks and ready.first_token is not None
        if ready.is_last and not is_whole:
            raise TransferError("the producer ended its offer early")
        self.block_ids += ready.block_ids
        self._epochs += ready.epochs
        self._hashes += ready.hashes
        self._checksums += ready.checksums
        if ready.is_last:
            self._first_token = ready.first_token
        return self._advance()

    def _without_known(self, ready: m.Ready) -> tuple[bool, m.Ready]:
        """After a link has broken all is told anew: (is nothing of it new?, what is new)."""
        known = min(max(0, len(self.block_ids) - ready.first), len(ready.block_ids))
        before = slice(ready.first, ready.first + known)
        for ours, theirs in (
            (self.block_ids, ready.block_ids),
            (self._epochs, ready.epochs),
            (self._hashes, ready.hashes),
            (self._checksums, ready.checksums),
        ):
            if theirs and list(theirs[:known]) != ours[before]:
                raise CorruptBlock("the producer says something else of its blocks than before")
        if known == len(ready.block_ids) and (self.is_complete or not ready.is_last):
            if ready.is_last and ready.first_token != self._first_token:
                raise CorruptBlock("the producer says something else of its prompt than before")
            return True, ready
        return False, m.Ready(
            ready.claim,
            ready.first + known,
            ready.block_ids[known:],
            ready.epochs[known:],
            ready.hashes[known:],
            ready.is_last,
            ready.first_token,
            ready.checksums[known:],
        )

    def _on_finished(self, finished: m.Finished) -> list[Action]:
        if self.phase is not Phase.FINISHING:
            raise TransferError("the producer confirmed what nobody had asked")
        if list(finished.epochs) != self._epochs:
            raise CorruptBlock("blocks changed hands while they were read")
        if finished.told != self._heard():
            raise CorruptBlock("the producer had said something else of its blocks")
        self.phase = Phase.ENDED
        self._counters.fetched += 1
        return [End(self._first_token, None)]

    def _heard(self) -> bytes:
        assert self._opened is not None
        return digest(
            self._opened,
            self.block_ids,
            self._epochs,
            self._hashes,
            self._checksums,
            self._first_token,
        )

    @property
    def first_token(self) -> int | None:
        """What prefill sampled, once everything has been named."""
        return self._first_token

    @property
    def is_complete(self) -> bool:
        """All blocks have been named."""
        return self._first_token is not None

    # --- inside ------------------------------------------------------------------------------

    def _advance(self) -> list[Action]:
        """Copy what has been named, or finish after the last."""
        if self.phase not in (Phase.HELD, Phase.READING) or self._target is None:
            return []
        if self._copy is not None:
            return []
        if self.is_complete and self._num_copied >= self.handle.num_blocks:
            self.phase = Phase.FINISHING
            return [Send(m.Finish(self.token))]
        if self._is_connected and self._num_copied < len(self.block_ids):
            self.phase = Phase.READING
            self._copy = self._next_copy(self._target)
            return [self._copy]
        return []

    def _next_copy(self, target: Target) -> Copy:
        first, named = self._num_copied, slice(self._num_copied, len(self.block_ids))
        remote = tuple(self.block_ids[named])
        pieces = target.pieces(first, len(remote), self.remote.block_size, self.handle.num_tokens)
        return Copy(
            remote, tuple(pieces), tuple(self._hashes[named]), tuple(self._checksums[named])
        )

    def _open(self) -> Send:
        info = self._info
        return Send(
            m.Open(
                self.token,
                self.handle,
                info.kv_fingerprint,
                info.instance_id,
                number=self._num_broken,
            )
        )

    def _may_retry(self, error: TransferError) -> bool:
        if self.phase in (Phase.STOPPING, Phase.ENDED) or isinstance(error, _FINAL):
            return False
        return self._count_retry(error)

    def _count_retry(self, error: TransferError) -> bool:
        if self._num_retries >= MAX_RETRIES:
            return False
        self._num_retries += 1
        self._counters.retries[error.code] += 1
        return True

    def _rest(self) -> list[Action]:
        """The copy that was stopped writes nothing more."""
        if self._copy is None:
            return []
        blocks, self._copy = self._blocks_being_written(), None
        if self.phase is Phase.STOPPING:
            return self._end()
        return [] if self._writes_through_gate else [Landed(blocks)]

    def _blocks_being_written(self) -> tuple[int, ...]:
        pieces = () if self._copy is None else self._copy.pieces
        return tuple(dict.fromkeys(piece.target for piece in pieces))

    def _end(self) -> list[Action]:
        assert self._error is not None
        self.phase = Phase.ENDED
        return [Send(m.Cancel(self.token)), End(None, self._error)]


def _as_transfer_error(error: XpydError) -> TransferError:
    return error if isinstance(error, TransferError) else TransferError(error.message)
