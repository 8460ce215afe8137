"""Training documents: conversations and plain texts, composed to fit a number of tokens.

Everything is drawn from one seeded generator, so a seed fixes the whole training text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from tokenizers import Tokenizer

from scripts.bundled_model import names
from scripts.bundled_model.fact_skill import TOPIC_WEIGHTS, TOPICS
from scripts.bundled_model.lists import number_list
from scripts.bundled_model.notes import NOT_TOLD, notes_document, search_notes, self_talk
from scripts.bundled_model.skills import SKILLS, coding, storytelling
from scripts.bundled_model.stories import program, sequence, story
from scripts.bundled_model.sums import operands
from scripts.bundled_model.tokenizer import END_OF_TEXT
from scripts.bundled_model.tools import tool_chat, weather_without_tool
from scripts.bundled_model.topics.topic import sentence
from scripts.bundled_model.turns import Exchange, Turn, segments
from scripts.bundled_model.words import lines

SYSTEM_PROMPTS = lines("""
    You are a helpful assistant.
    You are a helpful assistant.
    You are a helpful assistant. Answer briefly.
    You are a friendly assistant.
    Be helpful.
    Be brief.
    Answer in English.
    You are xpyd-demo, a very small demonstration model.
    You are a concise assistant who answers in one sentence.
    You are an AI assistant that answers questions.
    Answer the questions of the user.
    You are a chatbot. Be polite and answer briefly.
    You are a teacher who answers the questions of children.
    Please answer truthfully.
""")
TOKENS_PER_NOTE = 19


@dataclass(slots=True)
class Document:
    """Token ids, and for each whether the model is trained to predict it."""

    ids: list[int] = field(default_factory=list)
    is_target: list[bool] = field(default_factory=list)

    def extend(self, ids: list[int], is_target: bool) -> None:
        """Append ids, all targets or none."""
        self.ids += ids
        self.is_target += [is_target] * len(ids)


def encode_turns(tokenizer: Tokenizer, turns: Exchange) -> Document:
    """Turns as a document whose targets are the assistant's words and ends of turn."""
    document = Document()
    for text, is_target in segments(turns):
        document.extend(tokenizer.encode(text).ids, is_target)
    return document


def small_exchange(rng: Random) -> Exchange:
    """One exchange of any everyday skill."""
    if rng.random() < 0.02:
        return weather_without_tool(rng)
    (skill,) = rng.choices(list(SKILLS), list(SKILLS.values()))
    return skill(rng)


def chat_exchanges(rng: Random) -> Iterator[Exchange]:
    """A chat without end; what the user tells of himself is asked for some exchanges later."""
    told: set[str] = set()
    pending: list[Exchange] = []
    while True:
        if pending and rng.random() < 0.5:
            question = pending.pop(rng.randrange(len(pending)))
            yield question
            if rng.random() < 0.2:
                pending.append(question)
        elif rng.random() < (0.45 if not told else 0.12):
            statement, question = self_talk(rng)
            subject = question[1].text.rsplit(" is ", 1)[0].rsplit(" in ", 1)[0][:12]
            if subject in told:
                continue
            told.add(subject)
            if rng.random() < 0.12:
                yield [question[0], Turn("assistant", NOT_TOLD)]
            else:
                yield statement
                pending.append(question)
        else:
            yield small_exchange(rng)


def chat_opening(rng: Random, budget: int) -> Exchange:
    """What a conversation starts with: nothing, a system turn, notes to search, or tools."""
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.2 else None
    kind = rng.random()
    if kind < 0.38 and budget >= 64:
        most = max(1, budget // TOKENS_PER_NOTE - 1)
        turns = search_notes(rng, rng.randint(1, min(most, 90)))
        if system and turns[0].role != "system":
            turns.insert(0, Turn("system", system))
        return turns
    if kind < 0.60 and budget >= 256:
        return tool_chat(rng, system)
    return [Turn("system", system)] if system else []


def chat_document(rng: Random, tokenizer: Tokenizer, budget: int) -> Document:
    """A conversation of whole exchanges that fills the budget as well as it can."""
    document = encode_turns(tokenizer, chat_opening(rng, budget))
    for number, turns in enumerate(chat_exchanges(rng)):
        following = encode_turns(tokenizer, turns)
        if len(document.ids) + len(following.ids) > budget:
            # An opening that is too long alone is thrown away; so is a first exchange.
            if number or any(document.is_target):
                break
            document = Document()
            continue
        document.ids += following.ids
        document.is_target += following.is_target
        if budget <= 128 and rng.random() < 16 / budget:
            break
    if len(document.ids) > budget:
        return chat_document(rng, tokenizer, budget)
    return document


def statements(rng: Random) -> str:
    """Facts as sentences, as sums, or as questions with answers."""
    form, count = rng.random(), rng.randint(1, 8)
    if form < 0.2:
        operation = rng.choice("++--**/")
        results = (operands(operation, rng) for _ in range(count))
        return "\n".join(f"{a} {operation} {b} = {result}" for a, b, result in results)
    topics = rng.choices(TOPICS, TOPIC_WEIGHTS, k=count)
    chosen = [rng.choice(topic.facts) for topic in topics]
    answers = [
        sentence(topic.answer.format(**fact)) for topic, fact in zip(topics, chosen, strict=True)
    ]
    if form < 0.7:
        return rng.choice((" ", "\n")).join(answers)
    marks = rng.choice((("Q", "A"), ("Question", "Answer"), ("User", "Assistant")))
    asked = (
        sentence(rng.choice(topic.questions).format(**fact))
        for topic, fact in zip(topics, chosen, strict=True)
    )
    dialogue = zip(asked, answers, strict=True)
    return "\n".join(f"{marks[0]}: {q}\n{marks[1]}: {a}" for q, a in dialogue)


def plain_text(rng: Random, budget: int) -> str:
    """A text without chat turns."""
    kinds: list[tuple[float, Callable[[], str]]] = [
        (0.68, lambda: statements(rng)),
        (0.12, lambda: story(rng, rng.choice(names.PEOPLE), rng.choice(names.ANIMALS))),
        (0.1, lambda: program(rng)),
        (0.05, lambda: sequence(rng)),
        (0.05, lambda: notes_document(rng, rng.randint(2, max(2, budget // TOKENS_PER_NOTE)))),
    ]
    (compose,) = rng.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])
    return compose()


def plain_document(rng: Random, tokenizer: Tokenizer, budget: int) -> Document:
    """Plain texts up to the budget, each ended by the end-of-text token, all of it targets."""
    document = Document()
    while len(document.ids) < budget:
        document.extend(tokenizer.encode(plain_text(rng, budget) + END_OF_TEXT).ids, True)
        if budget <= 512:
            break
    return Document(document.ids[:budget], document.is_target[:budget])


def echo_document(rng: Random, tokenizer: Tokenizer, budget: int) -> Document:
    """Random tokens said twice or more; only what can be copied is a target.

    The shortest way to attention that looks up what followed the last time. Notes, tools and
    names all build on it, and from chats alone it emerges late.
    """
    once = [
        rng.randrange(3, tokenizer.get_vocab_size()) for _ in range(rng.randint(4, budget // 2))
    ]
    document = Document(list(once), [False] * len(once))
    document.extend(once * (budget // len(once)), True)
    return Document(document.ids[:budget], document.is_target[:budget])


def compose(rng: Random, tokenizer: Tokenizer, budget: int, echo_share: float) -> Document:
    """One training document of at most budget tokens, with this probability an echo."""
    kind = rng.random()
    if kind < echo_share:
        return echo_document(rng, tokenizer, budget)
    if kind > 0.93:
        return plain_document(rng, tokenizer, budget)
    return chat_document(rng, tokenizer, budget)


def tokenizer_texts(rng: Random, count: int) -> Iterator[str]:
    """Text to learn the vocabulary from: each fact, and count samples of everything else."""
    for topic in TOPICS:
        for fact in topic.facts:
            answer = sentence(topic.answer.format(**fact))
            for question in rng.sample(topic.questions, min(4, len(topic.questions))):
                yield f"{sentence(question.format(**fact))} {answer}"
            yield f"{rng.choice(topic.questions).format(**fact).lower()} {answer}"
            yield answer
    for _ in range(count):
        makers = (small_exchange, storytelling, coding, number_list)
        for maker in makers if rng.random() < 0.05 else (small_exchange,):
            yield " ".join(turn.text for turn in maker(rng))
        if rng.random() < 0.15:
            yield "".join(text for text, _ in segments(tool_chat(rng, rng.choice(SYSTEM_PROMPTS))))
        if rng.random() < 0.3:
            turns = (*search_notes(rng, 3), *self_talk(rng)[0], *self_talk(rng)[1])
            yield " ".join(turn.text for turn in turns)
