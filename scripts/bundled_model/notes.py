"""Notes to search: composed statements, questions about them, and what a user said of himself."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from scripts.bundled_model import facts, names
from scripts.bundled_model.topics.topic import sentence, with_article
from scripts.bundled_model.turns import Exchange, Turn, exchange
from scripts.bundled_model.words import lines, phrases

NOT_FOUND = "The notes do not say that."


@dataclass(frozen=True, slots=True)
class Note:
    """A statement, ways to ask for it, and the answer."""

    key: str  # no two notes of one context share it
    text: str
    questions: tuple[str, ...]
    answer: str


def thing_note(rng: Random) -> Note:
    """Where something is."""
    thing = f"{rng.choice(names.COLORS)} {rng.choice(names.ITEMS)}"
    text = f"The {thing} is in the {rng.choice(names.SPOTS)}."
    questions = (
        f"Where is the {thing}?",
        f"Where can I find the {thing}?",
        f"where is the {thing}",
        f"Tell me where the {thing} is.",
        f"In which place is the {thing}?",
    )
    return Note(thing, text, questions, text)


def code_note(rng: Random) -> Note:
    """A number or a secret word that belongs to something."""
    owner = rng.choice(
        (
            f"room {rng.randint(1, 99)}",
            f"the {rng.choice(names.COLORS)} door",
            f"the {rng.choice(names.ITEMS)}",
            f"{names.person(rng)}'s locker",
            f"{names.person(rng)}",
        )
    )
    what = rng.choice(("code", "password", "secret number", "number", "secret word"))
    secret = names.invented(rng) if "word" in what else names.digits(rng, 2, 6)
    text = f"The {what} for {owner} is {secret}."
    questions = (
        f"What is the {what} for {owner}?",
        f"Tell me the {what} for {owner}.",
        f"what is the {what} for {owner}",
        f"Which {what} belongs to {owner}?",
        f"What's the {what} for {owner}?",
        f"Do you know the {what} for {owner}?",
    )
    return Note(f"{what} {owner}", text, questions, text)


def job_note(rng: Random) -> Note:
    """What somebody does, and where."""
    who, job, where = names.person(rng), rng.choice(names.JOBS), names.city(rng)
    text = f"{who} works as {with_article(job)} in {where}."
    questions = (
        f"What does {who} do?",
        f"Where does {who} work?",
        f"What is {who}'s job?",
        f"What is the job of {who}?",
        f"In which city does {who} work?",
    )
    return Note(f"job {who}", text, questions, text)


def home_note(rng: Random) -> Note:
    """Where somebody lives."""
    who, where = names.person(rng), names.city(rng)
    text = f"{who} lives in {where}."
    questions = (
        f"Where does {who} live?",
        f"In which city does {who} live?",
        f"Which city does {who} live in?",
        f"Tell me where {who} lives.",
    )
    return Note(f"home {who}", text, questions, text)


def taste_note(rng: Random) -> Note:
    """Somebody's favorite something."""
    who = names.person(rng)
    kind, pool = rng.choice(
        (("color", names.COLORS), ("food", names.FOODS), ("animal", names.ANIMALS))
    )
    text = f"{who}'s favorite {kind} is {rng.choice(pool)}."
    questions = (
        f"What is {who}'s favorite {kind}?",
        f"Which {kind} does {who} like best?",
        f"what is {who}'s favorite {kind}",
        f"Tell me {who}'s favorite {kind}.",
    )
    return Note(f"{kind} {who}", text, questions, text)


def meeting_note(rng: Random) -> Note:
    """When a meeting takes place."""
    who, day = names.person(rng), rng.choice(facts.DAYS)
    hour = f"{rng.randint(7, 20)}:{rng.choice(('00', '15', '30', '45'))}"
    text = f"The meeting with {who} is on {day} at {hour}."
    questions = (
        f"When is the meeting with {who}?",
        f"When do I meet {who}?",
        f"On which day is the meeting with {who}?",
        f"At what time do I meet {who}?",
    )
    return Note(f"meeting {who}", text, questions, text)


def animal_note(rng: Random) -> Note:
    """How many animals somebody has."""
    who, kind, count = names.person(rng), rng.choice(names.ANIMALS), rng.randint(2, 99)
    kinds = {"sheep": "sheep", "mouse": "mice", "fox": "foxes"}.get(kind, f"{kind}s")
    text = f"{who} has {count} {kinds}."
    questions = (
        f"How many {kinds} does {who} have?",
        f"How many {kinds} has {who}?",
        f"Tell me how many {kinds} {who} has.",
    )
    return Note(f"{kinds} {who}", text, questions, text)


def price_note(rng: Random) -> Note:
    """What something costs."""
    thing = f"{rng.choice(names.COLORS)} {rng.choice(names.ITEMS)}"
    text = f"The price of the {thing} is {rng.randint(2, 999)} dollars."
    questions = (
        f"What is the price of the {thing}?",
        f"How much is the {thing}?",
        f"How much does the {thing} cost?",
        f"What does the {thing} cost?",
    )
    return Note(f"price {thing}", text, questions, text)


def train_note(rng: Random) -> Note:
    """When and where a train leaves."""
    where = names.city(rng)
    hour = f"{rng.randint(5, 23)}:{rng.randint(10, 59)}"
    text = f"The train to {where} leaves at {hour} from platform {rng.randint(1, 20)}."
    questions = (
        f"When does the train to {where} leave?",
        f"When is the train to {where}?",
        f"From which platform does the train to {where} leave?",
    )
    return Note(f"train {where}", text, questions, text)


MAKERS: tuple[Callable[[Random], Note], ...] = (
    thing_note,
    thing_note,
    code_note,
    code_note,
    job_note,
    home_note,
    taste_note,
    meeting_note,
    animal_note,
    price_note,
    train_note,
)
FILLER = lines("""
    The weather was fine all week.
    Nobody was late today.
    Please water the plants.
    The windows were cleaned on time.
    All other rooms are empty.
    The garden looks very nice in spring.
    There is fresh coffee in the morning.
    The old list is no longer valid.
    Please read everything with care.
    The lights are off at night.
    It was a quiet day.
    The next report will come soon.
""")
HEADINGS = lines("""
    Here are some notes:
    Read these notes:
    Notes:
    Read this text:
    Here is a text:
    Use this information:
    Context:
    Please read the following:
    Remember these facts:
    Information:
    Document:
""")
ASKING = ("{q}", "Question: {q}", "Now answer: {q}", "{q}", "Answer this question: {q}")
NOTED = "I have read the notes. What would you like to know?"


def note_set(rng: Random, count: int) -> list[Note]:
    """count notes about different things."""
    # Few kinds make many alike notes, the harder case.
    kinds = rng.sample(MAKERS, rng.choice((1, 3, len(MAKERS))))
    notes: dict[str, Note] = {}
    while len(notes) < count:
        note = rng.choice(kinds)(rng)
        notes.setdefault(note.key, note)
    return list(notes.values())


def context(notes: list[Note], rng: Random) -> str:
    """The notes as a paragraph, as lines or as a list, perhaps with idle sentences between."""
    texts = [note.text for note in notes]
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, max(1, len(texts) // 2))):
            texts.insert(rng.randint(0, len(texts)), rng.choice(FILLER))
    form = rng.random()
    if form < 0.5:
        return " ".join(texts)
    return "\n".join(texts if form < 0.8 else (f"- {text}" for text in texts))


def ask(note: Note, rng: Random) -> str:
    """A question about a note, in one of its phrasings."""
    question = rng.choice(ASKING).format(q=rng.choice(note.questions))
    return question.rstrip("?.") if rng.random() < 0.1 else question


def search_notes(rng: Random, count: int) -> Exchange:
    """count notes and one to ten questions, one in ten about something that is not there."""
    notes = note_set(rng, count + 1)
    missing, notes = notes[-1], notes[:-1]
    asked = rng.sample(notes, min(len(notes), rng.randint(1, 10)))
    body = f"{rng.choice(HEADINGS)}\n{context(notes, rng)}" if rng.random() < 0.7 else ""
    body = body or context(notes, rng)
    questions = [(ask(note, rng), note.answer) for note in asked]
    if rng.random() < 0.15:
        questions.insert(rng.randint(0, len(questions)), (ask(missing, rng), NOT_FOUND))
    form = rng.random()
    turns: Exchange = []
    if form < 0.25:
        turns = exchange(body, NOTED)
    elif form < 0.85:
        question, answer = questions.pop(0)
        gap = rng.choice(("\n\n", "\n\n", "\n", " "))
        text = f"{body}{gap}{question}" if rng.random() < 0.85 else f"{question}\n\n{body}"
        turns = exchange(text, answer)
    else:
        turns = [Turn("system", body)]
    for question, answer in questions:
        turns += exchange(question, answer)
    return turns


def notes_document(rng: Random, count: int) -> str:
    """Notes with questions and answers as plain text, for completion without a chat."""
    notes = note_set(rng, count)
    text = context(notes, rng)
    for note in rng.sample(notes, min(count, rng.randint(1, 4))):
        text += f"\nQuestion: {rng.choice(note.questions)}\nAnswer: {note.answer}"
    return text


@dataclass(frozen=True, slots=True)
class AboutSelf:
    """Something a user may say of himself; told and asked hold phrasings between semicolons."""

    told: str
    reply: str
    asked: str
    answer: str


SELF = (
    AboutSelf(
        told="My name is {p}.; I am {p}.; I'm {p}.; Call me {p}.; Hi, my name is {p}.; "
        "Hello, I am {p}.; my name is {p}; Hi, I'm {p}!",
        reply="Nice to meet you, {p}!",
        asked="What is my name?; What's my name?; Do you know my name?; Who am I?; "
        "Do you remember my name?; what is my name; Can you tell me my name?; "
        "How am I called?; Tell me my name.",
        answer="Your name is {p}.",
    ),
    AboutSelf(
        told="I live in {c}.; My home is in {c}.; I come from {c}.; I am from {c}.; "
        "My city is {c}.",
        reply="{c} sounds like a nice place.",
        asked="Where do I live?; Where am I from?; Which city do I live in?; "
        "In which city do I live?; Where is my home?; What is my city?",
        answer="You live in {c}.",
    ),
    AboutSelf(
        told="My favorite color is {k}.; I like the color {k}.; My favourite colour is {k}.; "
        "{k} is my favorite color.",
        reply="{k} is a nice color.",
        asked="What is my favorite color?; Which color do I like?; "
        "Do you know my favorite color?; What's my favorite color?; "
        "What is my favourite colour?",
        answer="Your favorite color is {k}.",
    ),
    AboutSelf(
        told="My favorite food is {f}.; I like to eat {f}.; I love {f}.",
        reply="That sounds tasty.",
        asked="What is my favorite food?; What do I like to eat?; Which food do I like?; "
        "What food do I love?",
        answer="Your favorite food is {f}.",
    ),
    AboutSelf(
        told="I have a {a} named {p}.; My {a} is called {p}.; My {a}'s name is {p}.",
        reply="{p} is a nice name.",
        asked="What is my {a} called?; What is the name of my {a}?; What's my {a}'s name?; "
        "How is my {a} called?",
        answer="Your {a} is called {p}.",
    ),
    AboutSelf(
        told="I am {n} years old.; I'm {n} years old.; My age is {n}.; I am {n}.",
        reply="That is a good age.",
        asked="How old am I?; What is my age?; Do you know how old I am?",
        answer="You are {n} years old.",
    ),
    AboutSelf(
        told="I work as {j}.; I am {j}.; I'm {j}.",
        reply="That sounds like an interesting job.",
        asked="What is my job?; What do I do?; What do I work as?; What is my work?",
        answer="You work as {j}.",
    ),
    AboutSelf(
        told="I like {h}.; My hobby is {h}.; I enjoy {h}.",
        reply="That sounds like fun.",
        asked="What is my hobby?; What do I like to do?; Which hobby do I have?",
        answer="Your hobby is {h}.",
    ),
    AboutSelf(
        told="My lucky number is {m}.; Remember the number {m}.; "
        "Please remember the number {m}.; The number is {m}.",
        reply="I will remember that.",
        asked="What is my lucky number?; Which number did I tell you?; What was the number?; "
        "What is the number?; Tell me the number.",
        answer="The number is {m}.",
    ),
    AboutSelf(
        told="The secret word is {w}.; Remember the word {w}.; The password is {w}.; "
        "The magic word is {w}.",
        reply="I will remember that.",
        asked="What is the secret word?; Which word did I tell you?; What was the word?; "
        "What is the password?; What is the magic word?",
        answer="The word is {w}.",
    ),
)
NOT_TOLD = "You have not told me that yet."


def self_talk(rng: Random) -> tuple[Exchange, Exchange]:
    """What the user says of himself, and the question about it that may come later."""
    fields = {
        "p": names.person(rng),
        "c": names.city(rng),
        "k": rng.choice(names.COLORS),
        "f": rng.choice(names.FOODS),
        "a": rng.choice(names.ANIMALS),
        "n": str(rng.randint(5, 99)),
        "j": with_article(rng.choice(names.JOBS)),
        "h": rng.choice(names.HOBBIES),
        "m": names.digits(rng, 1, 5),
        "w": names.invented(rng) if rng.random() < 0.5 else rng.choice(names.WORDS),
    }
    about = SELF[0] if rng.random() < 0.35 else rng.choice(SELF)
    pick = rng.randrange(100)
    statement, question = (
        sentence(options[pick % len(options)].format(**fields))
        for options in (phrases(about.told), phrases(about.asked))
    )
    if rng.random() < 0.2:
        statement, question = statement.rstrip("."), question.rstrip("?.")
    if rng.random() < 0.15:
        question = question.lower()
    return (
        exchange(statement, sentence(about.reply.format(**fields))),
        exchange(question, sentence(about.answer.format(**fields))),
    )
