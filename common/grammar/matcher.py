"""llguidance, as both the checking process and the engine use it: same limits, same errors."""

from __future__ import annotations

from dataclasses import dataclass

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from common.errors import BadRequest
from common.grammar.closing import Closer

MAX_ERROR_CHARS = 300

# Work per token mask and memory per sequence are bounded; whoever exceeds them is refused.
_LIMITS = LLParserLimits(
    step_lexer_fuel=200_000,  # 14 ms
    step_max_items=50_000,  # 2.5 ms
    max_lexer_states=20_000,  # 1 to 2 kB each
    max_grammar_size=200_000,
    verbose_errors=False,
)


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """Shared by all sequences with one constraint: each copies the matcher."""

    matcher: LLMatcher
    end_ids: frozenset[int]  # the tokens that end an output for llguidance
    closer: Closer | None = None
    end_len: int | None = None  # tokens of the shortest whole output that `closer` finds


def load_tokens(
    tokenizer_json: str, vocab_size: int, eos_token_ids: tuple[int, ...]
) -> LLTokenizer:
    """`vocab_size`: the model's, which may be padded. Raises BadRequest."""
    try:
        return LLTokenizer(
            tokenizer_json, n_vocab=vocab_size, eos_token=list(eos_token_ids) or None
        )
    except ValueError as error:
        raise BadRequest(
            f"this model's tokenizer cannot be constrained: {first_line(str(error))}"
        ) from None


def compile_grammar(tokens: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher at the start of the output, to be copied. Raises BadRequest."""
    matcher = LLMatcher(tokens, grammar, log_level=0, limits=_LIMITS)
    raise_error(matcher)
    return matcher


def raise_error(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise BadRequest(f"the constraint cannot be enforced: {first_line(matcher.get_error())}")


def first_line(text: str) -> str:
    """llguidance appends source excerpts and internal state."""
    return text.strip().partition("\n")[0][:MAX_ERROR_CHARS]
