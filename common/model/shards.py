"""Who holds what of a model that several ranks run together: pure arithmetic, without a tensor.

Ranks take rows of the projections that begin a block (query, key, value, gate, up) and of the
vocabulary, and columns of those that end one (attention's output, down). Heads are dealt out in
order; with more ranks than KV heads, neighbouring ranks hold copies of one. The feed-forward's
inner features need not divide evenly; the vocabulary is padded to equal shares.

    8 query heads, 4 KV heads    rank 0 |q0 q1 k0|   rank 1 |q2 q3 k1|   rank 2 …   over 4 ranks
                                 rank 0 |q0 k0|  1 |q1 k0|  2 |q2 k1|  3 |q3 k1| …  over 8
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.errors import ConfigError
from common.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank holds of a stored tensor: `start` to `stop` along `axis`."""

    shape: tuple[int, ...]  # of the whole tensor
    axis: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's place among those that share a model. `Shard()`: it has the model to itself."""

    rank: int = 0
    num_ranks: int = 1

    def share(self, total: int) -> range:
        """Neighbouring items, as evenly as can be."""
        return range(total * self.rank // self.num_ranks, total * (self.rank + 1) // self.num_ranks)

    def padded_share(self, total: int) -> tuple[range, int]:
        """Equal shares, the last ones short of items: (the items of this rank, room for each)."""
        room = -(-total // self.num_ranks)
        start = min(self.rank * room, total)
        return range(start, min(start + room, total)), room

    def kv_heads(self, num_heads: int) -> range:
        return heads_of(self.rank, self.num_ranks, num_heads)

    def local(self, spec: ModelSpec) -> ModelSpec:
        """The heads of this rank; everything else as of the whole model."""
        return replace(
            spec,
            num_heads=len(self.share(spec.num_heads)),
            num_kv_heads=len(self.kv_heads(spec.num_kv_heads)),
        )


def heads_of(rank: int, num_ranks: int, num_heads: int) -> range:
    """The KV heads of a rank. Raises ValueError if they cannot be dealt out evenly."""
    small, large = sorted((num_ranks, num_heads))
    if not 0 <= rank < num_ranks or not small or large % small:
        raise ValueError(f"{num_heads} KV heads cannot be dealt out to {num_ranks} ranks")
    if num_ranks >= num_heads:
        head = rank * num_heads // num_ranks
        return range(head, head + 1)
    share = num_heads // num_ranks
    return range(rank * share, (rank + 1) * share)


def check_shards(spec: ModelSpec, num_ranks: int) -> None:
    """Raises ConfigError, naming the flag, if the model cannot be shared by so many ranks."""
    flag = f"--tensor-parallel-size {num_ranks}"
    if num_ranks == 1:
        return
    if spec.llama is None:
        raise ConfigError(
            f"{flag}: {spec.architecture} runs through transformers, which is not split; use 1"
        )
    if spec.num_heads % num_ranks:
        raise ConfigError(f"{flag} does not divide the {spec.num_heads} attention heads")
    small, large = sorted((num_ranks, spec.num_kv_heads))
    if large % small:
        raise ConfigError(
            f"{flag} neither divides the {spec.num_kv_heads} KV heads nor is a multiple of them"
        )
    if spec.llama.intermediate_size < num_ranks:
        raise ConfigError(
            f"{flag} is more than the {spec.llama.intermediate_size} features to be shared"
        )
