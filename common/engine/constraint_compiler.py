"""Constraints compiled off the engine's thread: checked in a killable process, cached by bytes.

    submit ─▶ queue ─▶ thread ─▶ CheckProcess (≤ 2 s, memory bound) ─▶ compiled here too ─▶ outcome

Nothing is loaded or started before the first constraint comes.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llguidance import LLTokenizer

from common.errors import BadRequest, XpydError
from common.grammar.check_process import CheckProcess, CheckTimeout
from common.grammar.closing import Closer
from common.grammar.matcher import CompiledGrammar, compile_grammar, load_tokens
from common.request import Constraint

log = logging.getLogger(__name__)

CACHE_BYTES = 128 << 20
MAX_END_LEN = 256  # what takes more tokens to end is not ended before its time
# Tool calls: half an argument must not look like a whole one to whoever carries the call out.
NEVER_CLOSED = ("structural_tag",)
_NICE = 5  # of the thread: decoding goes first
# Measured: a compiled grammar takes 250 to 400 times the bytes of its text.
_BASE_BYTES, _BYTES_PER_CHARACTER = 64 << 10, 400


@dataclass(slots=True)
class Compilation:
    """One constraint on its way. `outcome`: None until it is known, then never changed."""

    constraint: Constraint
    outcome: CompiledGrammar | XpydError | None = None
    num_bytes: int = 0


class ConstraintCompiler:
    """`submit` and `close` are for the engine's thread."""

    def __init__(
        self,
        tokenizer_json: Callable[[], str],
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """`tokenizer_json`: the text of a Hugging Face tokenizer.json; asked for when needed."""
        self.on_outcome: Callable[[], None] = lambda: None  # called in the compiling thread
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Compilation] = OrderedDict()
        self._num_bytes = 0
        self._jobs: queue.SimpleQueue[Compilation | None] = queue.SimpleQueue()
        self._process = CheckProcess(self._opening)
        self._tokens: tuple[LLTokenizer, Closer] | None = None
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def submit(self, constraint: Constraint) -> Compilation:
        """At once; its `outcome` may be there already."""
        key = (constraint.kind, constraint.text)
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
            made = self._known[key] = Compilation(constraint)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="constraints", daemon=True)
            self._thread.start()
        self._jobs.put(made)
        return made

    def close(self) -> None:
        """Idempotent. What is being compiled now is killed."""
        if self._thread is not None:
            self._is_closing = True
            self._jobs.put(None)
            self._process.kill()
            self._thread.join(5.0)
            self._thread = None

    def cached_bytes(self) -> int:
        return self._num_bytes

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (job := self._jobs.get()) is not None:
            if self._is_closing:
                break
            job.outcome = self._compile(job)
            self._keep(job)
            self.on_outcome()
        self._process.close()

    def _compile(self, job: Compilation) -> CompiledGrammar | XpydError:
        field = job.constraint.field
        try:
            grammar = self._process.grammar_of(job.constraint.kind, job.constraint.text)
            job.num_bytes = _BASE_BYTES + _BYTES_PER_CHARACTER * len(grammar)
            tokens, closer = self._load_tokens()
            matcher = compile_grammar(tokens, grammar)
            end_len = None
            if job.constraint.kind not in NEVER_CLOSED:
                end = closer.end_from(matcher, MAX_END_LEN)
                end_len = None if end is None else len(end)
            return CompiledGrammar(matcher, frozenset(tokens.eos_tokens), closer, end_len)
        except BadRequest as error:
            return type(error)(f"{field}: {error.message}", field)
        except XpydError as error:
            return error
        except Exception:
            log.exception("compiling a constraint failed")
            return XpydError("compiling the constraint failed; see the instance's log")

    def _load_tokens(self) -> tuple[LLTokenizer, Closer]:
        if self._tokens is None:
            tokens = load_tokens(self._tokenizer_json(), self._vocab_size, self._eos_token_ids)
            self._tokens = tokens, Closer(tokens)
        return self._tokens

    def _opening(self) -> dict[str, Any]:
        return {
            "tokenizer": self._tokenizer_json(),
            "vocab_size": self._vocab_size,
            "eos_token_ids": self._eos_token_ids,
        }

    def _keep(self, job: Compilation) -> None:
        """Remember it, and forget the longest unused until all fit. A time-out is not kept."""
        key = (job.constraint.kind, job.constraint.text)
        with self._lock:
            if isinstance(job.outcome, XpydError):
                job.num_bytes = _BASE_BYTES
                if isinstance(job.outcome, CheckTimeout) or not isinstance(job.outcome, BadRequest):
                    del self._known[key]
                    return
            self._num_bytes += job.num_bytes
            for old_key, old in list(self._known.items()):
                if self._num_bytes <= self._cache_bytes:
                    break
                if old.outcome is not None:
                    del self._known[old_key]
                    self._num_bytes -= old.num_bytes
