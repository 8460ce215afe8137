"""A step that has been launched and whose tokens nobody has seen yet.

Where a forward pass returns before it is computed (a GPU), the next step is launched behind it: its
input is the tokens that this one will choose, which never leave the device in between. So the GPU
finds its next work while the host still looks at the last tokens. A sequence that turns out to have
ended has then been computed once in vain; until that is over, the block that it writes to belongs
to nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.engine.block_pool import BlockPool
from common.engine.sampler import DeviceSamples, Samples
from common.engine.scheduler import Plan
from common.engine.sequence import Sequence


def is_foreseeable(sequence: Sequence) -> bool:
    """Can its next token be chosen by the device alone, from logits, seed and position?"""
    return (
        sequence.params.logprobs is None
        and sequence.edits is None
        and sequence.penalties is None
        and sequence.constraint is None
        and not sequence.wants_prompt_logprobs
    )


@dataclass(slots=True)
class Flight:
    plan: Plan
    sampled: list[Sequence]  # a row each
    num_tokens: int
    chosen: Samples | DeviceSamples
    targets: dict[str, int] = field(default_factory=dict)  # request id: the block it writes to
    held: list[int] = field(default_factory=list)

    def keep_target(self, sequence: Sequence, pool: BlockPool) -> None:
        """The sequence leaves: what is written for it lands nowhere harmful."""
        block = self.targets.pop(sequence.request_id, None)
        if block is not None:
            pool.hold([block], "in flight")
            self.held.append(block)

    @property
    def is_on_device(self) -> bool:
        """Can another step be launched behind it?"""
        return isinstance(self.chosen, DeviceSamples)

    def samples(self) -> Samples:
        """Waits for the device."""
        return self.chosen if isinstance(self.chosen, Samples) else self.chosen.read()

    def tokens_of(self, sequences: list[Sequence]) -> Tensor:
        """[sequences] int64 on the device: the tokens chosen for them."""
        assert isinstance(self.chosen, DeviceSamples), "the host knows these tokens"
        if len(sequences) == len(self.sampled):
            return self.chosen.token_ids
        row = {id(sequence): i for i, sequence in enumerate(self.sampled)}
        rows = torch.tensor([row[id(sequence)] for sequence in sequences])
        device = self.chosen.token_ids.device
        if device.type != "cpu":
            rows = rows.pin_memory().to(device, non_blocking=True)
        return self.chosen.token_ids[rows]
