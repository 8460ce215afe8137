"""The training loop: batches of equally long documents, Muon and AdamW, a cosine schedule."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from scripts.bundled_model.documents import Document, compose
from scripts.bundled_model.network import Network

TOKENS_PER_STEP = 4096
# Budget of a batch's documents, in tokens, and how often such a batch is drawn. Short ones teach
# most facts per second; long ones teach positions up to the context length, and come later.
SHORT_BUDGETS = {64: 0.5, 128: 0.3, 256: 0.2}
BUDGETS = {64: 0.25, 128: 0.16, 256: 0.28, 512: 0.24, 1024: 0.05, 2048: 0.02}
SHORT_UNTIL = 0.2  # share of the steps
ECHO_UNTIL = 0.1
WARM_UP = 0.05  # share of the steps
# Share of the learning rate that attention and embeddings get: at the full rate the planted
# circuit is gone after 40 steps and takes 300 to come back.
GENTLE = 0.4
FINAL_RATE = 0.02  # of the peak learning rate
LOG_EVERY_S = 20.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train. With minutes, the speed of the machine decides the number of steps."""

    seed: int
    steps: int | None
    minutes: float
    learning_rate: float = 6e-3


@dataclass(frozen=True, slots=True)
class Batch:
    """ids and is_target, each [rows, tokens]; short rows are padded at the end, untargeted."""

    ids: Tensor
    is_target: Tensor


def padded(rows: Sequence[Document]) -> Batch:
    """The documents as one batch."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    is_target = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        is_target[number, : len(row.ids)] = torch.tensor(row.is_target)
    return Batch(ids, is_target)


def next_batch(rng: Random, tokenizer: Tokenizer, progress: float) -> Batch:
    """A batch for this share of the training: first much echoing, and short texts for a while."""
    budgets = SHORT_BUDGETS if progress < SHORT_UNTIL else BUDGETS
    (budget,) = rng.choices(list(budgets), list(budgets.values()))
    echo_share = 0.2 if progress < ECHO_UNTIL else 0.04
    num_rows = TOKENS_PER_STEP // budget
    return padded([compose(rng, tokenizer, budget, echo_share) for _ in range(num_rows)])


def optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) needs about half of AdamW's steps
    here, and its five small matrix products per weight are a few per cent of a step.
    """
    named = dict(network.named_parameters())
    embedding = [named.pop("model.embed_tokens.weight")]
    norms = [named.pop(name) for name in list(named) if named[name].dim() == 1]
    attention = [named.pop(name) for name in list(named) if "self_attn" in name]
    return [
        torch.optim.Muon(
            [
                {"params": list(named.values()), "share": 1.0},
                {"params": attention, "share": GENTLE},
            ],
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [{"params": norms, "share": 1.0}, {"params": embedding, "share": GENTLE}],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        ),
    ]


def rate_at(progress: float) -> float:
    """Share of the peak learning rate after this share of the training."""
    if progress < WARM_UP:
        return (progress + 1e-3) / WARM_UP
    falling = (progress - WARM_UP) / (1 - WARM_UP)
    return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * min(falling, 1.0))) / 2


def train(network: Network, tokenizer: Tokenizer, plan: Plan) -> int:
    """Train the network in place; returns the number of steps taken. Prints progress."""
    chosen = optimizers(network)
    started = logged = time.monotonic()
    rng = Random(plan.seed)
    step, recent = 0, 0.0
    while True:
        elapsed_s = time.monotonic() - started
        progress = step / plan.steps if plan.steps else elapsed_s / (60 * plan.minutes)
        if progress >= 1.0:
            break
        batch = next_batch(rng, tokenizer, progress)
        loss = train_step(network, batch, chosen, plan.learning_rate * rate_at(progress))
        step += 1
        recent = loss if step == 1 else 0.97 * recent + 0.03 * loss
        if time.monotonic() - logged > LOG_EVERY_S or step == 1:
            logged = time.monotonic()
            left_s = (logged - started) * (1 - progress) / max(progress, 1e-6)
            speed = step * TOKENS_PER_STEP / (logged - started)
            print(
                f"step {step}  {100 * progress:.1f} %  loss {recent:.3f}  "
                f"{speed:.0f} tokens/s  {left_s / 60:.1f} min left",
                flush=True,
            )
    return step


def train_step(
    network: Network, batch: Batch, chosen: list[torch.optim.Optimizer], rate: float
) -> float:
    """One forward and backward pass and update; returns the loss in nats per target token."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network.loss(batch.ids, batch.is_target)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer in chosen:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()
