"""Point to point through torch.distributed: nccl between GPUs, gloo between host memories.

A consumer and a producer that meet for the first time make a process group of two; nobody else
takes part, so instances come and go without a world that all must agree on (pair.py). Reads are
not one-sided here: the consumer asks over the side channel, where the producer checks that the
lease covers the blocks, and the producer sends.

The group's own connections are neither encrypted nor authenticated, like those of every fast KV
path; what travels over the side channel (requests, epochs, checksums) is.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from common.errors import TransferError
from kv_transfer.region import KVRegion
from kv_transfer.transport.base import Gate, Peer, Stopped, Transport
from kv_transfer.transport.pair import PairRequest, Receiver, Sender
from kv_transfer.transport.pair_group import check_backend
from kv_transfer.transport.pair_memory import pair_memory

log = logging.getLogger(__name__)

ASK_BYTES = 64 << 20  # the most that one request asks for: what a stopped read may waste
MAX_ASKED = 1024  # blocks, as in messages.Read
MAX_REMEMBERED = 1024  # names of pairs that have ended
LOOK_S = 0.02  # how often a waiting read looks whether its gate has closed


class NcclTransport(Transport):
    name = "nccl"
    serves = True

    def __init__(self, region: KVRegion, incarnation: str, host: str) -> None:
        """`host`: the address of this instance that the other ends reach. Raises ConfigError."""
        self.region = region
        self.memory = pair_memory(region)
        check_backend(self.memory.device)
        self.checksums = region.device is None  # the bytes may cross a network
        self.incarnation = incarnation
        self.host = host
        self._lock = threading.Lock()
        self._senders: dict[str, Sender] = {}  # by the pair's name
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._is_closed = False

    def describe(self) -> bytes:
        """Nothing: the consumer says where to meet."""
        return b""

    def connect(self, description: bytes, num_blocks: int) -> Peer:
        return NcclPeer(self)

    def serve(self, request: bytes, block_ids: Sequence[int]) -> None:
        try:
            asked = msgspec.msgpack.decode(request, type=PairRequest)
        except msgspec.MsgspecError:
            raise TransferError("the consumer's request is malformed") from None
        with self._lock:
            if self._is_closed or asked.pair in self._ended:
                return  # the consumer notices, and makes another pair
            sender = self._senders.get(asked.pair) or self._meet(asked)
        sender.send(asked.sequence, block_ids)

    def _meet(self, asked: PairRequest) -> Sender:
        for former in list(self._senders.values()):
            if former.consumer == asked.consumer:
                former.close()
        sender = Sender(self.memory, self.host, asked, self.region.block_bytes, self._has_ended)
        self._senders[asked.pair] = sender
        return sender

    def _has_ended(self, name: str) -> None:
        with self._lock:
            self._senders.pop(name, None)
            self._ended[name] = None
            while len(self._ended) > MAX_REMEMBERED:
                self._ended.popitem(last=False)

    @property
    def num_pairs(self) -> int:
        """As a producer."""
        return len(self._senders)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for sender in self._senders.values():
                sender.close()


class NcclPeer(Peer):
    def __init__(self, transport: NcclTransport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._receiver: Receiver | None = None
        self._is_closed = False
        blocks = ASK_BYTES // transport.region.block_bytes
        self._max_blocks = min(MAX_ASKED, max(1, blocks))

    def read(
        self, remote: Sequence[int], local: Sequence[int], hashes: Sequence[str], gate: Gate
    ) -> None:
        for start in range(0, len(remote), self._max_blocks):
            part = slice(start, start + self._max_blocks)
            job = self._fresh().put(remote[part], local[part], start, gate)
            while not job.done.wait(LOOK_S):
                if gate.is_closed:
                    raise Stopped("the read was stopped")
            if job.error is not None:
                raise job.error

    def _fresh(self) -> Receiver:
        """The pair of now, or a new one."""
        transport = self._transport
        with self._lock:
            if self._is_closed:
                raise TransferError("the connector is closing")
            if self._receiver is None or not self._receiver.is_fresh:
                if self._receiver is not None:
                    self._receiver.close()
                self._receiver = Receiver(
                    transport.memory,
                    transport.host,
                    transport.incarnation,
                    transport.region.block_bytes,
                )
            return self._receiver

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._receiver is not None:
                self._receiver.close()
