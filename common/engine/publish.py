"""Makes a sequence's filled blocks known: to the prefix cache by name, to a connector by offer."""

from __future__ import annotations

from common.engine.block_pool import BlockPool
from common.engine.interface import FilledBlocks
from common.engine.prefix import PrefixHasher
from common.engine.prefix_log import PrefixLog
from common.engine.sequence import Sequence


class Publisher:
    def __init__(
        self, pool: BlockPool, hasher: PrefixHasher, block_size: int, *, is_caching: bool
    ) -> None:
        self._pool = pool
        self._hasher = hasher
        self._block_size = block_size
        self._is_caching = is_caching
        self.log: PrefixLog | None = None  # of what can be found from now on

    def name_full_blocks(self, sequence: Sequence) -> None:
        """Give blocks that have become full their prefix digest."""
        num_full = sequence.num_computed // self._block_size
        if num_full == sequence.num_named or not (self._is_caching or sequence.offer):
            return
        if sequence.is_unconfirmed:  # others must not find what may be wrong
            return
        salt = sequence.request.kv_salt
        self._hasher.extend(sequence.digests, sequence.tokens, sequence.num_computed, salt)
        if self._is_caching:
            blocks, digests = sequence.block_ids, sequence.digests
            new = [
                index
                for index in range(sequence.num_named, num_full)
                if self._pool.name(blocks[index], digests[index])
            ]
            if self.log is not None:
                self.log.stored(new, digests, sequence.tokens, salt)
        sequence.num_named = num_full

    def offer(self, sequence: Sequence, *, is_last: bool) -> FilledBlocks | None:
        """Hold the blocks that became full (at the end also the partial one), and describe them."""
        num_full = sequence.num_computed // self._block_size
        first = sequence.num_offered
        end = -(-sequence.num_computed // self._block_size) if is_last else num_full
        if end <= first and not is_last:
            return None
        digests = sequence.digests[first:num_full]
        if end > num_full:
            salt = sequence.request.kv_salt
            digests.append(
                self._hasher.partial(sequence.digests, sequence.tokens, sequence.num_computed, salt)
            )
        blocks = sequence.block_ids[first:end]
        self._pool.hold(blocks, sequence.request_id)
        sequence.num_offered = end
        return FilledBlocks(
            sequence.request_id,
            first,
            tuple(blocks),
            self._pool.epochs(blocks),
            tuple(digest.hex() for digest in digests),
            sequence.num_computed if is_last else end * self._block_size,
            is_last,
        )
