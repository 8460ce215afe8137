"""Where a rank's KV heads lie.

In host memory all ranks of an instance map one pool, whose blocks look like those of an instance
with one rank: so blocks go over to instances with any number of ranks as they are, by any
connector. Each rank reads and writes its own heads of each block; ranks that hold copies of a head
write the same bytes to the same place. A GPU's memory is its own: there a rank's cache has its
heads and nothing else.
"""

from __future__ import annotations

from torch import Tensor

from common.model.shards import Shard
from common.model.spec import ModelSpec


def own_heads(cache: Tensor, shard: Shard, spec: ModelSpec) -> Tensor:
    """This rank's part of `cache`: [blocks, layers, 2, kv_heads, block_size, head_dim]."""
    heads = shard.kv_heads(spec.num_kv_heads)
    if cache.shape[3] == len(heads):
        return cache
    return cache[:, :, :, heads.start : heads.stop]
