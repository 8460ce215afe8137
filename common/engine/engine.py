"""The engine both roles share: sequences in, tokens out, step by step; and verbs on KV blocks.

    step: schedule → build the batch → forward → sample → post-process

It runs in one thread (driver.py owns it) and knows no network and no role. An error that one
request causes ends that request only; whatever else is raised is our bug (see driver.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from common.engine.block_pool import BlockPool
from common.engine.constraint_compiler import ConstraintCompiler
from common.engine.constraint_gate import ConstraintGate
from common.engine.flight import Flight
from common.engine.interface import EngineLoad, EngineSettings, FilledBlocks, StepResult
from common.engine.kv_cache import KVCache
from common.engine.limits import check_request
from common.engine.news import token_event, vector_event
from common.engine.pooler import Pooler
from common.engine.prefix import PrefixHasher
from common.engine.prefix_log import PrefixLog
from common.engine.publish import Publisher
from common.engine.runner import Model, Runner
from common.engine.sampler import Samples
from common.engine.scheduler import Plan, Scheduler
from common.engine.sequence import Sequence, Stage
from common.errors import BadRequest, ModelNotFound, Overloaded, XpydError
from common.model.lora.adapter import Adapter
from common.request import (
    Constraint,
    EngineRequest,
    TokenEvent,
    TokenLogprob,
    check_kind,
)

MAX_HELD_S = 20.0  # for a constraint to be compiled, others before it included

__all__ = ["Engine", "EngineLoad", "EngineSettings", "FilledBlocks", "Model", "StepResult"]


class Engine:
    def __init__(
        self,
        model: Model,
        cache: KVCache,
        settings: EngineSettings,
        eos_token_ids: tuple[int, ...],
        fingerprint: str,
        *,
        constraints: ConstraintCompiler | None = None,
        is_overlapped: bool = False,
        adapters: Callable[[str], Adapter] | None = None,
        pooler: Pooler | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fingerprint` names model and layout (`kv_fingerprint`): it is in every prefix hash.

        constraints:  None: requests with a constraint are refused
        is_overlapped:  launch the next step before this one's tokens are known, where possible;
                        worth it where forward passes return before they are computed
        adapters:     by digest, or ModelNotFound; None: requests with an adapter are refused
        pooler:       of a model that pools, which can do nothing else; None: it generates
        """
        self.settings = settings
        self.cache = cache
        self._vocab_size = model.spec.vocab_size
        self._clock = clock
        self._eos_token_ids = frozenset(eos_token_ids)
        self._block_size = cache.block_size
        self._pool = BlockPool(cache.num_blocks, clock)
        self._constraints = ConstraintGate(constraints, self._eos_token_ids)
        self._hasher = PrefixHasher(fingerprint, cache.block_size)
        self._publisher = Publisher(
            self._pool,
            self._hasher,
            cache.block_size,
            is_caching=settings.enable_prefix_caching,
        )
        self._scheduler = Scheduler(self._pool, self._hasher, cache.block_size, settings)
        self._runner = Runner(
            model, cache, settings, self._eos_token_ids, is_overlapped=is_overlapped
        )
        self._adapters = adapters
        self._pooler = pooler
        self._flight: Flight | None = None  # launched ahead, by the step before
        self._sequences: dict[str, Sequence] = {}
        self._num_added = 0
        self._prefix_log: PrefixLog | None = None  # kept only while somebody wants it
        # News not yet returned by a step.
        self._events: list[TokenEvent] = []
        self._filled: list[FilledBlocks] = []
        self._failed: list[tuple[str, XpydError]] = []

    # --- requests --------------------------------------------------------------------------------

    def add(self, request: EngineRequest, *, offer: bool = False) -> None:
        """Queue a request, or raise ContextLengthExceeded, BadRequest or Overloaded.

        offer:  the sequence leaves after its first token; its blocks are held and reported
                (`StepResult.filled`) as they fill.
        """
        num_waiting = len(self._scheduler.waiting) + len(self._scheduler.held)
        if num_waiting >= self.settings.max_num_waiting:
            raise Overloaded("too many requests are waiting")
        sequence = self._new_sequence(request, offer)
        if not self._is_complete(sequence):
            self._enter(sequence)

    def adopt(
        self, request: EngineRequest, block_ids: list[int], *, is_confirmed: bool = True
    ) -> None:
        """Run on from blocks that hold the KV of all tokens but the last.

        is_confirmed: False: that will be known by `confirm`, or `abort`; until then nobody else
                      finds the blocks

        block_ids: from `match_prefix` and `reserve`, in order. They are the engine's from now on,
        unless this raises: then they are still the caller's. A last one that holds nothing but the
        last token is given back.
        """
        sequence = self._new_sequence(request, offer=False)
        num_computed = sequence.num_tokens - 1
        num_needed = self._num_blocks(num_computed)
        if len(block_ids) not in (num_needed, self._num_blocks(sequence.num_tokens)):
            raise BadRequest(
                f"cannot adopt {len(block_ids)} blocks for {num_computed} computed tokens"
            )
        if self._is_complete(sequence):
            self._pool.free(block_ids)
            return
        self._pool.free(block_ids[num_needed:])
        self._pool.adopt(block_ids[:num_needed], request.request_id)
        sequence.block_ids = list(block_ids[:num_needed])
        sequence.is_adopted = True
        sequence.is_unconfirmed = not is_confirmed
        sequence.num_computed = num_computed
        self._publisher.name_full_blocks(sequence)
        self._enter(sequence)

    def confirm(self, request_id: str) -> None:
        """What was adopted is right. Sequences that have ended are ignored."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            sequence.is_unconfirmed = False
            self._publisher.name_full_blocks(sequence)

    def prepare(self, constraint: Constraint) -> None:
        """A request with it will come: compile it meanwhile."""
        self._constraints.prepare(constraint)

    def abort(self, request_id: str) -> None:
        """Forget a request and give its blocks back, at once; no event follows. Idempotent."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._leave(sequence)
        self._events = [event for event in self._events if event.request_id != request_id]

    def fail_running(self, error: XpydError) -> StepResult:
        """After a step that raised: end those who may have been in it, or, if nobody was, all."""
        self._drop_flight()
        self._fail(self._scheduler.running or list(self._sequences.values()), error)
        return self._news(num_tokens=0)

    def fail_all(self, error: XpydError) -> StepResult:
        """At shutdown."""
        self._drop_flight()
        self._fail(list(self._sequences.values()), error)
        return self._news(num_tokens=0)

    def notify_with(self, wake_up: Callable[[], None]) -> None:
        """`wake_up` is called, in any thread, when a step may do more than the one before."""
        self._constraints.notify_with(wake_up)

    def close(self) -> None:
        """Idempotent."""
        self._constraints.close()

    def has_work(self) -> bool:
        return bool(self._sequences or self._events or self._prefix_log or self._flight)

    # --- one step --------------------------------------------------------------------------------

    def step(self) -> StepResult:
        """One forward pass. `num_tokens` 0 with work left: nothing can run until blocks return."""
        if self._scheduler.held:
            self._release_held()
        with torch.inference_mode():
            flight, self._flight = self._flight, None
            if flight is None:
                plan = self._scheduler.schedule()
                if not plan.chunks:
                    return self._news(num_tokens=0)
                self._note_start(plan)
                if self._pooler is not None:
                    num_tokens, vectors = self._runner.pool(plan, self._pooler)
                    self._take_vectors(plan, vectors)
                    return self._news(num_tokens=num_tokens)
                flight = self._runner.launch(plan)
            if flight.is_on_device:
                ahead = self._scheduler.ahead(flight.sampled)
                self._flight = None if ahead is None else self._runner.launch_behind(flight, ahead)
            samples = flight.samples()
        self._post_process(flight, samples)
        self._pool.free(flight.held)
        return self._news(num_tokens=flight.num_tokens)

    def _drop_flight(self) -> None:
        """Forget what was launched ahead, once it cannot write any more."""
        flight, self._flight = self._flight, None
        if flight is not None:
            with contextlib.suppress(RuntimeError):  # a device that failed writes no more either
                flight.samples()
            self._pool.free(flight.held)

    def _note_start(self, plan: Plan) -> None:
        for sequence in plan.grown:
            if sequence.started_at is None:
                sequence.started_at = self._clock()

    def _post_process(self, flight: Flight, samples: Samples) -> None:
        row = 0
        for sequence, num_tokens in flight.plan.chunks:
            if sequence.stage is Stage.DONE:  # since the step was launched ahead
                row += 1
                continue
            is_sampled = num_tokens == sequence.num_tokens - sequence.num_computed
            error = samples.errors.get(row) if is_sampled else None
            sequence.num_computed += num_tokens
            if error is not None:
                self._fail([sequence], error)
            else:
                self._publish(sequence, is_last=is_sampled)
                if is_sampled:
                    self._take_token(sequence, samples, row)
            row += is_sampled

    def _publish(self, sequence: Sequence, *, is_last: bool) -> None:
        self._publisher.name_full_blocks(sequence)
        if sequence.offer:
            filled = self._publisher.offer(sequence, is_last=is_last)
            if filled is not None:
                self._filled.append(filled)

    def _take_token(self, sequence: Sequence, samples: Samples, row: int) -> None:
        tokens: tuple[int, ...] = ()
        logprobs: tuple[TokenLogprob, ...] = ()
        if sequence.params.max_tokens:
            tokens = (samples.token_ids[row],)
            sequence.append(tokens[0])
            if sequence.constraint is not None:
                sequence.constraint.accept(tokens[0])
            if row in samples.logprobs:
                logprobs = (samples.logprobs[row],)
        event = self._event(sequence, tokens, logprobs)
        self._events.append(event)
        sequence.wants_prompt_logprobs = (
            False  # told; a later preemption need not gather them again
        )
        if event.finish_reason is not None or sequence.offer:
            self._leave(sequence)

    def _take_vectors(self, plan: Plan, vectors: list[bytes]) -> None:
        """`vectors`: one for each chunk that ends its prompt, in order."""
        found = iter(vectors)
        for sequence, num_tokens in plan.chunks:
            is_last = num_tokens == sequence.num_to_compute
            sequence.num_computed += num_tokens
            self._publish(sequence, is_last=is_last)
            if is_last:
                self._events.append(vector_event(sequence, next(found), self._clock()))
                self._leave(sequence)

    def _event(
        self, sequence: Sequence, tokens: tuple[int, ...], logprobs: tuple[TokenLogprob, ...] = ()
    ) -> TokenEvent:
        return token_event(sequence, tokens, logprobs, self._eos_token_ids, self._clock())

    # --- blocks ----------------------------------------------------------------------------------

    def match_prefix(self, token_ids: tuple[int, ...], salt: str = "") -> list[int]:
        """Leading full blocks that the cache holds already, with one hold on each.

        Whoever cannot go on at once must `free` them: what is held cannot be used for others.
        """
        if not self.settings.enable_prefix_caching:
            return []
        blocks = self._pool.match(self._hasher.full_blocks(token_ids, salt))
        self._pool.hold(blocks, "match")
        return blocks

    def unknown_prefix(self, token_ids: tuple[int, ...], salt: str = "") -> tuple[int, list[bytes]]:
        """Names of the full blocks that a prompt could begin with, and how many of the first of
        them are here already. Its last token is never among them: its logits are needed."""
        if not self.settings.enable_prefix_caching:
            return 0, []
        digests = self._hasher.full_blocks(token_ids[:-1], salt)
        return len(self._pool.match(digests)), digests

    def keep_prefix(
        self, token_ids: tuple[int, ...], salt: str, first: int, block_ids: list[int], count: int
    ) -> None:
        """Give reserved blocks back; the first `count` hold the KV of the prompt's full blocks from
        number `first` on, and enter the prefix cache."""
        digests = self._hasher.full_blocks(token_ids[: (first + count) * self._block_size], salt)
        self._pool.free(block_ids[count:])
        # From the end: what is given back first is evicted first.
        kept = [self._pool.keep(block_ids[i], digests[first + i]) for i in reversed(range(count))]
        if self._prefix_log is not None:
            new = [first + i for i, is_new in enumerate(reversed(kept)) if is_new]
            self._prefix_log.stored(new, digests, np.array(token_ids, np.int64), salt)

    def reserve(self, num_blocks: int, owner: str = "load") -> list[int] | None:
        """Empty blocks to load KV into; None if that would take what sequences here need."""
        if not self._scheduler.can_reserve(num_blocks):
            return None
        return self._pool.reserve(num_blocks, owner)

    def free(self, block_ids: list[int]) -> None:
        """Give back one hold or reservation per id."""
        self._pool.free(block_ids)

    def epochs(self, block_ids: list[int]) -> tuple[int, ...]:
        return self._pool.epochs(block_ids)

    def report_prefixes(self) -> None:
        """From now on results tell what enters and leaves the prefix cache; first, all it holds."""
        if self._prefix_log is None:
            self._prefix_log = self._publisher.log = PrefixLog(self._block_size)
            self._pool.on_removed = self._prefix_log.removed
        self._prefix_log.held(self._pool.digests())

    def stop_prefix_reports(self) -> None:
        self._prefix_log = self._publisher.log = self._pool.on_removed = None

    def load(self) -> EngineLoad:
        """May be called from any thread: a heartbeat must not wait for a step."""
        sequences = list(self._sequences.values())  # one bytecode: no step comes between
        return EngineLoad(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler) - len(self._scheduler.running),
            num_waiting_tokens=sum(s.num_to_compute for s in sequences if s.num_to_compute > 1),
            free_blocks=self._pool.available,
            total_blocks=self._pool.num_blocks,
        )

    def block_counts(self) -> dict[str, int]:
        """Blocks by state: free, cached, used, held, reserved. From any thread."""
        return self._pool.counts()

    def ledger(self) -> dict[str, Any]:
        """Counts by state, and every block that somebody has, for people and for leak hunts."""
        return {
            "total": self._pool.num_blocks,
            **self._pool.counts(),
            "preemptions": self._scheduler.num_preemptions,
            "sequences": [repr(sequence) for sequence in self._sequences.values()],
            "blocks": self._pool.ledger(),
        }

    # --- coming and going ------------------------------------------------------------------------

    def _new_sequence(self, request: EngineRequest, offer: bool) -> Sequence:
        """Checked, and known to nobody yet."""
        if request.request_id in self._sequences:
            raise BadRequest(f"request {request.request_id} is running already", param="request_id")
        check_kind(request.is_pooled, pools=self._pooler is not None)
        check_request(request, self.settings, self._vocab_size)
        longest = len(request.prompt_token_ids) + request.sampling.max_tokens
        if self._num_blocks(longest) > self._pool.num_blocks:
            raise BadRequest(f"{longest} tokens do not fit into this instance's KV cache")
        self._num_added += 1
        sequence = Sequence(
            request,
            self._num_added,
            self._eos_token_ids,
            offer=offer,
            now=self._clock(),
            adapter=self._adapter_of(request),
        )
        if request.sampling.constraint is not None:
            self._constraints.enter(sequence, request.sampling.constraint)
        return sequence

    def _adapter_of(self, request: EngineRequest) -> Adapter | None:
        if not request.adapter:
            return None
        if self._adapters is None:
            raise ModelNotFound("this instance serves no LoRA adapters", "model")
        return self._adapters(request.adapter)

    def _is_complete(self, sequence: Sequence) -> bool:
        """Had the request ended before it came? Then its last event is all that is left to do."""
        if not sequence.num_outputs or sequence.finish_reason() is None:
            return False
        self._events.append(self._event(sequence, ()))
        return True

    def _enter(self, sequence: Sequence) -> None:
        self._runner.prepare(sequence)
        if self._pooler is not None:
            self._pooler.prepare(sequence)
        self._sequences[sequence.request_id] = sequence
        if sequence.compilation is not None:
            self._scheduler.hold(sequence)
        else:
            self._scheduler.add(sequence)

    def _release_held(self) -> None:
        """Whose constraint has been compiled may run; whose cannot be ends."""
        for sequence in self._scheduler.held.copy():
            try:
                is_bound = self._constraints.bind(sequence)
            except XpydError as error:
                self._fail([sequence], error)
                continue
            if is_bound and self._is_complete(sequence):
                self._leave(sequence)
            elif is_bound:
                self._scheduler.unhold(sequence)
            elif self._clock() - sequence.added_at > MAX_HELD_S:
                self._fail([sequence], Overloaded("too many constraints are being compiled"))

    def _leave(self, sequence: Sequence) -> None:
        """The one place where a sequence's blocks are given back."""
        if self._flight is not None:
            self._flight.keep_target(sequence, self._pool)
        self._scheduler.remove(sequence)
        self._runner.release(sequence)
        if self._pooler is not None:
            self._pooler.forget(sequence)
        self._sequences.pop(sequence.request_id, None)
        if not self._sequences:
            self._pool.check()

    def _fail(self, sequences: list[Sequence], error: XpydError) -> None:
        for sequence in list(sequences):
            self._leave(sequence)
            self._failed.append((sequence.request_id, error))

    def _news(self, *, num_tokens: int) -> StepResult:
        """Everything since the last step, handed over once."""
        prefixes = self._prefix_log.drain() if self._prefix_log is not None else ()
        result = StepResult(self._events, self._filled, self._failed, num_tokens, prefixes)
        self._events, self._filled, self._failed = [], [], []
        return result

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)
