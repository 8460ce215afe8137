"""One kind of fact, how it is asked and how it is answered."""

from dataclasses import dataclass

from scripts.bundled_model import facts

Fact = dict[str, str]


@dataclass(frozen=True, slots=True)
class Topic:
    """Facts of one kind. Templates are filled from a fact's fields with str.format."""

    name: str
    facts: list[Fact]
    answer: str  # the one sentence every phrasing is answered with
    short: str  # the same when one word is asked for
    questions: tuple[str, ...]
    held_out: tuple[str, ...]  # phrasings never trained on


def table(text: str) -> list[Fact]:
    """A two-column table as facts with fields x and y."""
    return [{"x": x, "y": y} for x, y in facts.pairs(text)]


def with_article(noun: str) -> str:
    """`noun` with a or an."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def sentence(text: str) -> str:
    """text with a capital first letter."""
    return text[:1].upper() + text[1:]
