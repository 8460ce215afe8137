"""What the trained network gets right, category by category, on phrasings it never saw.

An answer counts only if it is right to the last token and then ends. Whether greedy decoding
would produce exactly the expected tokens can be read from one forward pass over prompt and
answer: each token must be the most likely one after those before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from scripts.bundled_model import names
from scripts.bundled_model.documents import Document, encode_turns
from scripts.bundled_model.fact_skill import TOPICS
from scripts.bundled_model.lists import COPY_HELD_OUT, LIST_FORMS, LISTS, copied_text
from scripts.bundled_model.network import Network
from scripts.bundled_model.notes import NOT_FOUND, ask, context, note_set, self_talk
from scripts.bundled_model.small_talk import CHATTER
from scripts.bundled_model.sums import SUM_HELD_OUT, operands
from scripts.bundled_model.tools import (
    WEATHER_HELD_OUT,
    tool_call,
    tools_system,
    weather_result,
    weather_tool,
)
from scripts.bundled_model.topics.topic import sentence
from scripts.bundled_model.train import padded
from scripts.bundled_model.turns import Exchange, Turn, exchange
from scripts.bundled_model.unknown import UNKNOWN

CASES = 100  # per category whose cases are drawn at random
ROWS = 32  # per forward pass


@dataclass(frozen=True, slots=True)
class Category:
    """Conversations whose last answer is judged."""

    name: str
    cases: list[Exchange]


def fact_categories() -> Iterator[Category]:
    """Every fact in every held-out phrasing; and again typed carelessly."""
    careless = []
    for topic in TOPICS:
        cases = []
        for fact in topic.facts:
            answer = sentence(topic.answer.format(**fact))
            for form in topic.held_out:
                question = sentence(form.format(**fact))
                cases.append(exchange(question, answer))
                careless.append(exchange(question.rstrip("?.").lower(), answer))
        yield Category(topic.name, cases)
    yield Category("all of the above, in lower case without a question mark", careless)


def sum_cases(operation: str) -> list[Exchange]:
    """Random sums in held-out phrasings."""
    rng, cases = Random(operation), []
    for _ in range(CASES):
        a, b, result = operands(operation, rng)
        form = rng.choice(SUM_HELD_OUT[operation])
        cases.append(exchange(form.format(a=a, b=b), f"{a} {operation} {b} = {result}."))
    return cases


def copy_cases(rng: Random) -> Iterator[Exchange]:
    """Texts to repeat."""
    while True:
        text = copied_text(rng, 12)
        yield exchange(rng.choice(COPY_HELD_OUT).format(x=text), text)


def note_cases(rng: Random, count: int, is_missing: bool) -> Iterator[Exchange]:
    """One question about count notes, or about a note that is not among them."""
    while True:
        notes = note_set(rng, count + 1)
        wanted = notes.pop() if is_missing else rng.choice(notes[:-1])
        answer = NOT_FOUND if is_missing else wanted.answer
        body = f"Here are some notes:\n{context(notes[:count], rng)}"
        yield exchange(f"{body}\n\n{ask(wanted, rng)}", answer)


def recall_cases(rng: Random, between: int) -> Iterator[Exchange]:
    """The user says something of himself and asks for it after some other questions."""
    capitals = TOPICS[0]
    while True:
        statement, question = self_talk(rng)
        idle: Exchange = []
        for fact in rng.sample(capitals.facts, between):
            idle += exchange(
                capitals.questions[0].format(**fact), sentence(capitals.answer.format(**fact))
            )
        yield [*statement, *idle, *question]


def tool_cases(rng: Random, is_result_given: bool) -> Iterator[Exchange]:
    """The call a weather question needs, or the answer that uses its result."""
    while True:
        tool, place = weather_tool(rng), names.city(rng)
        question = rng.choice(WEATHER_HELD_OUT).format(c=place)
        turns = [tools_system([tool.schema], None), *exchange(question, tool_call(tool, place))]
        if is_result_given:
            raw, answer = weather_result(rng, place)
            turns += [Turn("tool", raw), Turn("assistant", answer)]
        yield turns


def no_call_cases(rng: Random) -> Iterator[Exchange]:
    """A fact asked while a tool is on offer."""
    while True:
        tool, topic = weather_tool(rng), rng.choice(TOPICS)
        fact = rng.choice(topic.facts)
        question = sentence(rng.choice(topic.held_out).format(**fact))
        answer = sentence(topic.answer.format(**fact))
        yield [tools_system([tool.schema], None), *exchange(question, answer)]


def unknown_cases(rng: Random) -> Iterator[Exchange]:
    """Questions about things that do not exist."""
    forms = (
        "Do you know the capital of {z}?",
        "Please explain what a {z} is.",
        "Who built {z}?",
        "What do you know about {z}?",
        "Is {z} a good book?",
        "How can I cook {z}?",
    )
    while True:
        name = names.invented(rng).capitalize()
        yield exchange(rng.choice(forms).format(z=name), UNKNOWN)


def categories() -> Iterator[Category]:
    """Everything that is measured, in the order of the printed table."""
    yield from fact_categories()
    for operation in SUM_HELD_OUT:
        yield Category(f"sums: {operation}", sum_cases(operation))
    seen = [exchange(q, answer) for questions, answer in CHATTER for q in questions]
    yield Category("small talk (seen phrasings)", seen)
    listed = [
        exchange(form.format(x=what), f"{sentence(text)}.")
        for what, text in LISTS.items()
        for form in LIST_FORMS
    ]
    yield Category("lists (seen phrasings)", listed)
    drawn = {
        "repeat a text": copy_cases(Random(1)),
        "find one of 5 notes": note_cases(Random(2), 5, False),
        "find one of 18 notes (about 300 tokens)": note_cases(Random(3), 18, False),
        "find one of 40 notes (about 650 tokens)": note_cases(Random(4), 40, False),
        "say that the notes lack something": note_cases(Random(5), 10, True),
        "remember what the user said": recall_cases(Random(6), 0),
        "remember it past two other questions": recall_cases(Random(7), 2),
        "call a weather tool": tool_cases(Random(8), False),
        "use a tool's result": tool_cases(Random(9), True),
        "answer without calling an offered tool": no_call_cases(Random(10)),
        "admit not to know": unknown_cases(Random(11)),
    }
    for name, cases in drawn.items():
        yield Category(name, list(islice(cases, CASES)))


def judged(turns: Exchange, tokenizer: Tokenizer) -> Document:
    """The conversation with only its last answer as target."""
    document = encode_turns(tokenizer, turns[:-1])
    document.is_target = [False] * len(document.ids)
    last = encode_turns(tokenizer, turns[-1:])
    document.ids += last.ids
    document.is_target += last.is_target
    return document


@torch.no_grad()
def correct(network: Network, documents: list[Document]) -> int:
    """How many documents' targets greedy decoding would produce."""
    right = 0
    ordered = sorted(documents, key=lambda document: len(document.ids))
    for start in range(0, len(ordered), ROWS):
        rows = ordered[start : start + ROWS]
        batch = padded(rows)
        ids, is_target = batch.ids, batch.is_target
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = F.linear(network.hidden(ids)[:, :-1], network.model.embed_tokens.weight)
        is_right = (logits.argmax(-1) == ids[:, 1:]) | ~is_target[:, 1:]
        right += int(is_right.all(dim=1).sum())
    return right


def accuracy_table(network: Network, tokenizer: Tokenizer) -> str:
    """A Markdown table of exact answers per category."""
    lines = ["| category | cases | exactly right |", "|---|---:|---:|"]
    num_right = num_facts = 0
    is_fact = True
    for category in categories():
        right = correct(network, [judged(case, tokenizer) for case in category.cases])
        lines.append(
            f"| {category.name} | {len(category.cases)} | {right / len(category.cases):.1%} |"
        )
        is_fact = is_fact and not category.name.startswith("all of the above")
        if is_fact:
            num_right, num_facts = num_right + right, num_facts + len(category.cases)
    lines.insert(2, f"| **all facts together** | {num_facts} | **{num_right / num_facts:.1%}** |")
    return "\n".join(lines)
