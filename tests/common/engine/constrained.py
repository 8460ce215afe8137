"""Engines whose outputs are constrained: a stand-in model (its logits are noise) over a byte-level
vocabulary, so that nothing but the constraint keeps an answer in shape."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.engine.constraint_compiler import ConstraintCompiler
from common.engine.engine import Engine, EngineSettings
from common.engine.kv_cache import KVCache, KVLayout
from common.errors import XpydError
from common.request import Constraint, EngineRequest, SamplingParams, TokenEvent
from common.text import TextModel
from tests.common.engine.standin_model import StandInModel, standin_spec
from tests.common.made_tokenizers import byte_level

import torch  # isort: skip

TEXT = TextModel(byte_level())
VOCAB = TEXT.vocab_size
EOS = byte_level().token_to_id("<|im_end|>") or 0
PROMPT = tuple(TEXT.encode("Hello"))
# Noise seldom closes what it has opened: these tokens are made likely.
CLOSING = tuple(
    sorted((token, 7.0) for token in range(VOCAB) if TEXT.vocabulary.bytes_of(token) in b'"]},')
)


@contextmanager
def running_compiler(**options: int) -> Iterator[ConstraintCompiler]:
    compiler = ConstraintCompiler(byte_level().to_str, VOCAB, (EOS,), **options)
    try:
        yield compiler
    finally:
        compiler.close()


def constrained_engine(
    compiler: ConstraintCompiler | None, *, num_blocks: int = 512, **limits: int
) -> Engine:
    model = StandInModel(standin_spec(VOCAB, max_model_len=2048))
    cache = KVCache(KVLayout.of(model.spec, 16), num_blocks, torch.device("cpu"))
    settings = {"max_num_seqs": 32, "max_num_batched_tokens": 256, **limits}
    return Engine(
        model,
        cache,
        EngineSettings(max_model_len=1024, **settings),  # type: ignore[arg-type]
        (EOS,),
        "constrained",
        constraints=compiler,
    )


def ask(
    request_id: str,
    constraint: Constraint | None,
    *,
    seed: int = 0,
    max_tokens: int = 200,
    temperature: float = 1.5,
    outputs: tuple[int, ...] = (),
    **sampling: object,
) -> EngineRequest:
    params = SamplingParams(
        max_tokens,
        temperature=temperature,
        seed=seed,
        constraint=constraint,
        **sampling,  # type: ignore[arg-type]
    )
    return EngineRequest(request_id, PROMPT, params, outputs)


class Answers:
    """What a run said, by request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.last: dict[str, TokenEvent] = {}
        self.failed: dict[str, XpydError] = {}
        self.events: dict[str, list[TokenEvent]] = {}

    def text(self, request_id: str) -> str:
        """Without the end token."""
        return TEXT.decode(self.tokens[request_id], skip_special_tokens=True)

    def reason(self, request_id: str) -> str:
        reason = self.last[request_id].finish_reason
        assert reason is not None
        return reason.value


def run_all(engine: Engine, requests: list[EngineRequest], deadline_s: float = 60.0) -> Answers:
    answers = Answers()
    for request in requests:
        engine.add(request)
        answers.tokens[request.request_id] = []
    deadline = time.monotonic() + deadline_s
    while engine.has_work():
        result = engine.step()
        for event in result.events:
            answers.tokens[event.request_id] += event.token_ids
            answers.events.setdefault(event.request_id, []).append(event)
            answers.last[event.request_id] = event
        answers.failed |= dict(result.failed)
        if result.is_empty() and not result.num_tokens:
            time.sleep(0.002)  # being compiled
        assert time.monotonic() < deadline
    return answers
