"""The prefix cache of a stand-in instance: block hashes in least-recently-used order, no KV.

What it says to proxies is what `common/instance/prefix_report.py` says for a real one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from common.engine.prefix import PrefixHasher, short_hash
from common.request import EngineRequest
from common.wire import Prefixes

Send = Callable[[bytes, Prefixes], bool]


class StandinPrefixes:
    def __init__(self, hasher: PrefixHasher, block_size: int, capacity: int) -> None:
        self.num_computed_tokens = 0
        self.watchers: dict[bytes, int] = {}  # by proxy: the number of its next message
        self._hasher = hasher
        self._block_size = block_size
        self._capacity = capacity
        self._cached: OrderedDict[int, None] = OrderedDict()

    def run(self, request: EngineRequest) -> tuple[int, Prefixes]:
        """Compute a prompt: (tokens that were not cached, what has changed)."""
        tokens = (*request.prompt_token_ids, *request.output_token_ids)
        digests = self._hasher.full_blocks(tokens, request.kv_salt)
        hashes = [short_hash(digest) for digest in digests]
        hits = 0
        while hits < len(hashes) and hashes[hits] in self._cached:
            hits += 1
        computed = max(1, len(tokens) - hits * self._block_size)
        self.num_computed_tokens += computed
        for block in reversed(hashes):  # a prefix goes from its end
            self._cached[block] = None
            self._cached.move_to_end(block)
        removed = []
        while len(self._cached) > self._capacity:
            removed.append(self._cached.popitem(last=False)[0])
        return computed, Prefixes("", 0, tuple(hashes[hits:]), tuple(removed))

    def tell(self, send: Send, incarnation: str, changes: Prefixes) -> None:
        for peer, seq in self.watchers.items():
            self.watchers[peer] = seq + 1
            send(peer, Prefixes(incarnation, seq, changes.added, changes.removed))

    def report(self, send: Send, incarnation: str, peer: bytes) -> None:
        """Everything, to a proxy that asks."""
        self.watchers[peer] = 1
        send(peer, Prefixes(incarnation, 0, tuple(self._cached), (), is_reset=True))
