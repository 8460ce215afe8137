"""A process of its own that tries constraints out: `python -m common.grammar.checker`.

A schema or a grammar can take any time and memory to compile. Here that hurts nobody: whoever
waits kills this process (check_process.py), memory is limited, and an alarm ends it should nobody
be left. One JSON object per line:

    stdin    {"tokenizer", "vocab_size", "eos_token_ids"}, then {"kind", "text"} …
    stdout   {"ready": true},                              then {"grammar"} or {"error"} …
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from random import Random
from typing import Any

import numpy as np
from llguidance import LLTokenizer

from common.errors import BadRequest
from common.grammar.matcher import compile_grammar, load_tokens, raise_error
from common.grammar.translate import grammar_of

MAX_BYTES = 1 << 30  # on top of what is in use once the vocabulary is loaded
ALARM_S = 5.0  # later than whoever waits
TRIAL_STEPS = 12
NICE = 5


def main() -> None:
    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the instance
    opening = json.loads(sys.stdin.readline())
    try:
        tokens = load_tokens(
            opening["tokenizer"], opening["vocab_size"], tuple(opening["eos_token_ids"])
        )
    except BadRequest as error:
        _answer({"error": error.message})
        return
    special = special_ids(tokens, opening["tokenizer"])
    _limit_memory()
    _answer({"ready": True})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, ALARM_S)  # the default action ends the process
        _answer(_check(tokens, special, json.loads(line)))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _check(tokens: LLTokenizer, special_ids: Mapping[str, int], job: dict[str, Any]) -> Any:
    try:
        grammar = grammar_of(job["kind"], job["text"], special_ids)
        _try_out(tokens, grammar)
    except BadRequest as error:
        return {"error": " ".join(error.message.split())}
    except (RecursionError, MemoryError):
        return {"error": "the constraint is too large or nested too deeply"}
    return {"grammar": grammar}


def _try_out(tokens: LLTokenizer, grammar: str) -> None:
    """Compile, and walk a few tokens: some grammars blow up only there."""
    matcher = compile_grammar(tokens, grammar)
    draw = Random(0)
    for _ in range(TRIAL_STEPS):
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        raise_error(matcher)
        if matcher.is_stopped():
            return
        allowed = np.unpackbits(mask, bitorder="little").nonzero()[0]
        if not len(allowed):
            raise BadRequest("the constraint allows no token of this model")
        matcher.consume_token(int(draw.choice(allowed)))
        raise_error(matcher)
        if matcher.is_stopped():
            return


def special_ids(tokens: LLTokenizer, tokenizer_json: str) -> dict[str, int]:
    """Those that llguidance never spells: all that the tokenizer calls special, and added ones in
    angle brackets (`<tool_call>`, `<think>`)."""
    added = json.loads(tokenizer_json).get("added_tokens", [])
    return {each["content"]: each["id"] for each in added if tokens.is_special_token(each["id"])}


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MAX_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(message: object) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
