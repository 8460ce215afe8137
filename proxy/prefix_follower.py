"""Follows what instances say of their prefix caches. Plain state with time as a parameter.

    unknown ──due: WatchPrefixes──▶ asked ──Prefixes(is_reset)──▶ following ──next number──┐
       ▲                              │ 2 s                            │  ▲───────────────┘
       └──────────────────────────────┴── a gap, 5 s of silence, lost ─┘

While an instance is not followed it counts as empty: routing is worse then, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from common.engine.prefix import PrefixHasher, short_hash
from common.request import EngineRequest
from common.wire import InstanceInfo, Prefixes
from proxy.prefix_index import PrefixIndex

ASK_AGAIN_S = 2.0
SILENCE_S = 5.0  # an instance that is followed sends something every second


@dataclass(slots=True)
class _Source:
    incarnation: str
    next_seq: int | None = None  # None: not followed
    asked_at: float = -math.inf
    heard_at: float = -math.inf


@dataclass(slots=True)
class PrefixFollower:
    index: PrefixIndex = field(default_factory=PrefixIndex)
    num_resets: int = 0  # times that an instance had to tell all
    _sources: dict[str, _Source] = field(default_factory=dict)

    def due(self, incarnations: Mapping[str, str], now: float) -> list[str]:
        """Whom to ask now, of the connected instances (id: incarnation). Forgets all others."""
        for gone in {*self._sources, *self.index.known()} - incarnations.keys():
            self.lost(gone)
        asked = []
        for instance_id, incarnation in incarnations.items():
            source = self._sources.get(instance_id)
            if source is None or source.incarnation != incarnation:
                self.lost(instance_id)
                source = self._sources[instance_id] = _Source(incarnation)
            if source.next_seq is not None and now - source.heard_at > SILENCE_S:
                self._unfollow(instance_id, source)
            if source.next_seq is None and now - source.asked_at >= ASK_AGAIN_S:
                source.asked_at = now
                asked.append(instance_id)
        return asked

    def came(self, instance_id: str, message: Prefixes, now: float) -> None:
        source = self._sources.get(instance_id)
        if source is None or source.incarnation != message.incarnation:
            return
        if message.is_reset:
            self.index.clear(instance_id)
            self.num_resets += 1
        elif message.seq != source.next_seq:
            if source.next_seq is not None:
                self._unfollow(instance_id, source)
            return
        source.next_seq, source.heard_at = message.seq + 1, now
        self.index.remove(instance_id, message.removed)
        self.index.add(instance_id, message.added)

    def lost(self, instance_id: str) -> None:
        """Its link broke, or it died or restarted."""
        self._sources.pop(instance_id, None)
        self.index.forget(instance_id)

    @property
    def num_followed(self) -> int:
        return sum(source.next_seq is not None for source in self._sources.values())

    def _unfollow(self, instance_id: str, source: _Source) -> None:
        """What it says does not fit together: ask it at once."""
        source.next_seq, source.asked_at = None, -math.inf
        self.index.clear(instance_id)


class PromptPrefix:
    """The block hashes of one prompt, for each kind of KV in the fleet."""

    def __init__(self, request: EngineRequest, output: Iterable[int] = ()) -> None:
        self._token_ids = (*request.prompt_token_ids, *output)
        self._salt = request.kv_salt
        self._hashes: dict[tuple[str, int], list[int]] = {}

    def hashes(self, info: InstanceInfo) -> list[int]:
        """Of the full blocks, as `info`'s engine names them."""
        kind = info.kv_fingerprint, info.block_size
        if info.block_size < 1:
            return []
        if kind not in self._hashes:
            digests = PrefixHasher(*kind).full_blocks(self._token_ids, self._salt)
            self._hashes[kind] = [short_hash(digest) for digest in digests]
        return self._hashes[kind]

    def cached_tokens(
        self, index: PrefixIndex, infos: Iterable[InstanceInfo], now: float
    ) -> dict[str, int]:
        """Leading tokens of the prompt in the caches, by instance id; who has none is left out."""
        found: dict[tuple[str, int], dict[str, int]] = {}
        cached = {}
        for info in infos:
            kind = info.kv_fingerprint, info.block_size
            if kind not in found:
                found[kind] = index.leading(self.hashes(info), now)
            if blocks := found[kind].get(info.instance_id):
                cached[info.instance_id] = blocks * info.block_size
        return cached
