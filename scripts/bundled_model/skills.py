"""Exchanges of a chat about one skill each: facts, sums, copying, chatting, lists, not knowing.

A skill is a function of a random generator that returns turns, user first, assistant last.
Notes to search and tools to call have files of their own, notes.py and tools.py.
"""

from random import Random

from scripts.bundled_model import facts, names
from scripts.bundled_model.questions import Fact, Topic, all_topics, sentence, with_article
from scripts.bundled_model.small_talk import CHATTER
from scripts.bundled_model.stories import FUNCTIONS, story
from scripts.bundled_model.turns import Exchange, exchange
from scripts.bundled_model.words import lines, phrases, words

TOPICS = all_topics()
# A topic's share grows slower than its number of facts, so that small topics are learned too.
TOPIC_WEIGHTS = [max(len(topic.facts), 20) ** 0.7 for topic in TOPICS]
FOLLOW_UPS = ("And {x}?", "What about {x}?", "and {x}?", "And what about {x}?", "How about {x}?")
CAN_FOLLOW = {"capital", "language", "currency", "author", "opposite", "plural", "past tense"}
CAN_FOLLOW |= {"colour", "continent", "young", "chemical symbol", "translation", "definition"}
QUOTABLE = {"author", "opposite", "synonym", "plural", "past tense", "number word"}
LEAD_INS = lines("""
    Please tell me:
    Quick question:
    Question:
    Hey,
    Hi!
    Hello,
    Tell me,
    One more question:
    Okay,
    I have a question:
    Now tell me:
    Please answer:
    Good. Next:
    I wonder:
    My homework asks:
    Listen,
    Excuse me,
    Sorry,
    Just curious:
    Another one:
    Here is a question for you:
    By the way,
    So,
    Well,
    And
    Hello again!
    Thanks!
    Great!
    Next question:
    Let me ask:
    I need help:
    Can you help me?
    You surely know this:
""")
ENDINGS = ("Thanks!", "Please.", "Thank you.", "I need it for school.", "Do you know?", "I forgot.")
ONE_WORD = ("Answer in one word.", "One word only.", "Answer briefly.", "Just the answer, please.")
UNKNOWN = "I am a very small demonstration model and I do not know that."


def with_typo(text: str, rng: Random) -> str:
    """text with one letter lost, doubled, or swapped with the next."""
    spot = rng.randrange(len(text) - 1)
    if not (text[spot].isalpha() and text[spot + 1].isalpha()):
        return text
    changed = rng.choice(
        (text[spot + 1], text[spot] * 2 + text[spot + 1], text[spot + 1] + text[spot])
    )
    return text[:spot] + changed + text[spot + 2 :]


def restyle(question: str, rng: Random) -> str:
    """The same question as another person would type it."""
    text = sentence(question)
    if rng.random() < 0.25:
        lead = rng.choice(LEAD_INS)
        text = f"{lead} {text if lead.endswith(('!', '.')) else question}"
    if rng.random() < 0.06:
        text = text.replace(" the ", " ", 1)
    if rng.random() < 0.04:
        text = with_typo(text, rng)
    if rng.random() < 0.22:
        text = text.rstrip("?.")
    elif rng.random() < 0.08:
        text = f"{text} {rng.choice(ENDINGS)}"
    if rng.random() < 0.22:
        text = text.lower()
    elif rng.random() < 0.01:
        text = text.upper()
    return text


SMALL_WORDS = set(words("what is the of a tell me do you can which please to does it that are"))
ADDED_WORDS = phrases("""
    please; exactly; actually; really; maybe; just; then; again; now; so; also; in fact; for me
    quickly; correctly; you think; of course; anyway; do you think; might; would; called
""")


def worn(template: str, rng: Random) -> str:
    """The template with some small words lost and perhaps one added, as people really write.

    What is left are the words that carry the meaning, and those the model has to rely on.
    """
    kept = [
        word
        for word in template.split(" ")
        if word.strip("?.,").lower() not in SMALL_WORDS or rng.random() < 0.7
    ]
    if rng.random() < 0.4:
        kept.insert(rng.randint(0, len(kept)), rng.choice(ADDED_WORDS))
    return " ".join(kept)


def phrasing(topic: Topic, rng: Random) -> str:
    """A template to ask for a fact, never one of those held out."""
    template = rng.choice(topic.questions)
    changed = worn(template, rng) if rng.random() < 0.4 else template
    return template if changed in topic.held_out else changed


def fact_question(topic: Topic, fact: Fact, rng: Random) -> Exchange:
    """One fact in one of its trained phrasings."""
    asked = fact
    if topic.name in QUOTABLE and rng.random() < 0.15:
        asked = {**fact, "x": rng.choice(('"{}"', "'{}'")).format(fact["x"])}
    question = phrasing(topic, rng).format(**asked)
    if rng.random() < 0.04:
        short = sentence(topic.short.format(**fact))
        return exchange(f"{restyle(question, rng)} {rng.choice(ONE_WORD)}", short)
    return exchange(restyle(question, rng), sentence(topic.answer.format(**fact)))


def fact(rng: Random) -> Exchange:
    """A fact, sometimes followed by one or two more of its kind asked in short."""
    (topic,) = rng.choices(TOPICS, TOPIC_WEIGHTS)
    turns = fact_question(topic, rng.choice(topic.facts), rng)
    while topic.name in CAN_FOLLOW and rng.random() < 0.15:
        following = rng.choice(topic.facts)
        is_translation = topic.name == "translation"
        form = "And {x} in {lang}?" if is_translation else rng.choice(FOLLOW_UPS)
        answer = sentence(topic.answer.format(**following))
        turns += exchange(restyle(form.format(**following), rng), answer)
    return turns


SUM_FORMS = {
    "+": phrases("""
    What is {a} + {b}?; {a} + {b}; {a}+{b}; {a}+{b}=?; {a} + {b} =; What is {a} plus {b}?
    How much is {a} plus {b}?; Calculate {a} + {b}.; Add {a} and {b}.; {a} plus {b}
    What is the sum of {a} and {b}?; What do you get if you add {a} and {b}?
    How much is {a}+{b}?; What's {a} plus {b}?; Compute {a} + {b}; What's {a}+{b}?
"""),
    "-": phrases("""
    What is {a} - {b}?; {a} - {b}; {a}-{b}; {a}-{b}=?; {a} - {b} =; What is {a} minus {b}?
    How much is {a} minus {b}?; Calculate {a} - {b}.; Subtract {b} from {a}.; {a} minus {b}
    What is the difference of {a} and {b}?; How much is {a}-{b}?; What's {a} minus {b}?
    Compute {a} - {b}; Take {b} away from {a}.; What's {a}-{b}?
"""),
    "*": phrases("""
    What is {a} * {b}?; {a} * {b}; {a}*{b}; {a} x {b}; {a} * {b} =; What is {a} times {b}?
    How much is {a} times {b}?; Calculate {a} * {b}.; Multiply {a} by {b}.; {a} times {b}
    What is the product of {a} and {b}?; What is {a} multiplied by {b}?
    What's {a} times {b}?; Compute {a} * {b}; What is {a} x {b}?; Multiply {a} and {b}.
    What's {a}*{b}?
"""),
    "/": phrases("""
    What is {a} / {b}?; {a} / {b}; {a}/{b}; What is {a} divided by {b}?; {a} / {b} =
    How much is {a} divided by {b}?; Calculate {a} / {b}.; Divide {a} by {b}.
    {a} divided by {b}; What's {a} divided by {b}?
"""),
}


SUM_HELD_OUT = {
    "+": ("Can you add {a} and {b}?", "Tell me what {a} plus {b} is.", "What does {a} + {b} make?"),
    "-": ("Can you subtract {b} from {a}?", "Tell me what {a} minus {b} is."),
    "*": ("Can you multiply {a} by {b}?", "Tell me what {a} times {b} is."),
    "/": ("Can you divide {a} by {b}?", "Tell me what {a} divided by {b} is."),
}


def operands(operation: str, rng: Random) -> tuple[int, int, int]:
    """Two numbers and their result, within what the model is meant to know."""
    if operation == "+":
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        return a, b, a + b
    if operation == "-":
        a, b = sorted((rng.randint(0, 20), rng.randint(0, 20)), reverse=True)
        return a, b, a - b
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if operation == "*":
        return a, b, a * b
    b = max(b, 1)
    return a * b, b, a


def word_problem(rng: Random) -> Exchange:
    """A sum told as a story of apples."""
    thing = rng.choice(["apples", "coins", "books", "eggs", "cookies", "pens", "balls", "stamps"])
    a, b = rng.randint(1, 12), rng.randint(1, 8)
    who = rng.choice(["I", names.person(rng)])
    have, do, me = ("have", "do", "You have") if who == "I" else ("has", "does", f"{who} has")
    if rng.random() < 0.5:
        change, result = rng.choice(("get {b} more", "buy {b} more", "find {b} more")), a + b
    else:
        a, b = max(a, b), min(a, b)
        change, result = rng.choice(("lose {b}", "give away {b}", "sell {b}")), a - b
    if who != "I":
        verb, _, rest = change.partition(" ")
        change = f"{verb}s {rest}"
    question = f"{who} {have} {a} {thing} and {change.format(b=b)}. "
    question += f"How many {thing} {do} {who} have{rng.choice([' now', ''])}?"
    return exchange(question, f"{me} {result} {thing}.")


def sums(rng: Random) -> Exchange:
    """A small sum, in digits or in words."""
    kind = rng.random()
    if kind < 0.07:
        return word_problem(rng)
    if kind < 0.13:
        return comparison(rng)
    operation = rng.choice("+++---**/")
    a, b, result = operands(operation, rng)
    form = rng.choice(SUM_FORMS[operation])
    in_words = rng.random() < 0.08
    shown = (facts.number_word(a), facts.number_word(b)) if in_words else (a, b)
    form = worn(form, rng) if rng.random() < 0.25 else form
    question = form.format(a=shown[0], b=shown[1])
    question = restyle(question, rng) if rng.random() < 0.5 else question
    return exchange(question, f"{a} {operation} {b} = {result}.")


def comparison(rng: Random) -> Exchange:
    """Which number is larger, or whether one is even."""
    a, b = rng.sample(range(101), 2)
    if rng.random() < 0.35:
        parity = rng.choice(("even", "odd"))
        is_so = (a % 2 == 0) == (parity == "even")
        question = rng.choice((f"Is {a} {parity}?", f"Is {a} an {parity} number?"))
        right = "even" if a % 2 == 0 else "odd"
        return exchange(question, f"{'Yes' if is_so else 'No'}, {a} is {right}.")
    word = rng.choice(("larger", "bigger", "greater", "smaller", "less"))
    wanted = min(a, b) if word in ("smaller", "less") else max(a, b)
    other = a + b - wanted
    question = rng.choice(("Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?"))
    verb = "smaller" if word in ("smaller", "less") else "larger"
    return exchange(question.format(w=word, a=a, b=b), f"{wanted} is {verb} than {other}.")


# A bar stands for a line end.
COPY_FORMS = phrases("""
    Repeat after me: {x}; Repeat this: {x}; Repeat: {x}; Say this: {x}; Copy this text: {x}
    Echo: {x}; Please repeat the following: {x}; Say exactly this: {x}; Copy: {x}
    Write this again: {x}; Repeat the following text exactly:|{x}; Repeat these words: {x}
    Please say: {x}; Can you repeat this? {x}; Print the following: {x}
    Output this text: {x}; Say: {x}
""")
COPY_HELD_OUT = ("Please repeat after me: {x}", "Please copy this: {x}", "Now say this: {x}")


def copied_text(rng: Random, longest: int) -> str:
    """Something to repeat, of at most longest words."""
    kind, length = rng.random(), rng.randint(1, longest)
    if kind < 0.25:
        topic = rng.choice(TOPICS)
        return sentence(topic.answer.format(**rng.choice(topic.facts)))
    if kind < 0.35:
        return " ".join(names.digits(rng, 1, 5) for _ in range(min(length, 8)))
    pool = [rng.choice(names.WORDS), *rng.sample(names.WORDS, min(length, 60))]
    chance = rng.choice((0.0, 0.3, 1.0))
    words = [names.invented(rng) if rng.random() < chance else word for word in pool[:length]]
    text = rng.choice((" ", " ", ", ")).join(words)
    return sentence(text) + rng.choice((".", "", "!")) if rng.random() < 0.5 else text


def copy(rng: Random) -> Exchange:
    """Repeat a given text."""
    text = copied_text(rng, rng.choice((4, 8, 12, 30)))
    return exchange(rng.choice(COPY_FORMS).replace("|", "\n").format(x=text), text)


def number_list(rng: Random) -> Exchange:
    """Count from one number to another, up or down."""
    low = rng.choice((1, 1, 1, rng.randint(0, 60)))
    high = low + rng.choice((5, 10, 20, rng.randint(2, 40))) - (low == 1)
    if rng.random() < 0.2:
        answer = ", ".join(str(n) for n in range(high, low - 1, -1))
        return exchange(f"Count down from {high} to {low}.", f"{answer}.")
    forms = ["Count from {low} to {high}.", "count from {low} to {high}"]
    forms += ["List the numbers from {low} to {high}.", "Please count from {low} up to {high}."]
    forms += ["Count to {high}.", "Can you count to {high}?"] * (low == 1)
    question = rng.choice(forms).format(low=low, high=high)
    return exchange(question, ", ".join(str(n) for n in range(low, high + 1)) + ".")


LISTS = {
    "the days of the week": ", ".join(facts.DAYS),
    "the months of the year": ", ".join(facts.MONTHS),
    "the letters of the alphabet": " ".join(facts.LETTERS),
    "the alphabet": " ".join(facts.LETTERS),
    "the planets": "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune",
    "the planets of the solar system": (
        "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune"
    ),
    "the seasons": "spring, summer, autumn, winter",
    "the four seasons": "spring, summer, autumn, winter",
    "the colors of the rainbow": "red, orange, yellow, green, blue, indigo, violet",
    "the continents": "Africa, Antarctica, Asia, Europe, North America, South America, Oceania",
    "the oceans": "the Pacific, the Atlantic, the Indian Ocean, the Southern Ocean, the Arctic",
    "the vowels": "A, E, I, O, U",
    "the five senses": "sight, hearing, smell, taste, touch",
    "the primary colors": "red, yellow, blue",
    "three fruits": "apple, banana, orange",
    "three animals": "dog, cat, horse",
    "some animals": "dog, cat, horse, lion, elephant",
    "some fruits": "apple, banana, orange, pear, grape",
    "five animals": "dog, cat, horse, lion, elephant",
    "some colors": "red, blue, green, yellow, black",
    "three colors": "red, blue, green",
    "the first ten prime numbers": "2, 3, 5, 7, 11, 13, 17, 19, 23, 29",
}
LIST_FORMS = phrases("""
    List {x}.; Name {x}.; Tell me {x}.; What are {x}?; Can you list {x}?; Give me {x}.
    Write down {x}.; Please list {x}.; Say {x}.; List all of {x}.; Which are {x}?
""")


def listing(rng: Random) -> Exchange:
    """A known list."""
    what = rng.choice(list(LISTS))
    question = rng.choice(LIST_FORMS).format(x=what)
    return exchange(restyle(question, rng), sentence(LISTS[what]) + ".")


def chatter(rng: Random) -> Exchange:
    """Greetings, small talk and single questions."""
    questions, answer = rng.choice(CHATTER)
    question = rng.choice(questions)
    if rng.random() < 0.4:
        question = rng.choice((question.lower(), question.rstrip("!?."), sentence(question)))
    return exchange(question, answer)


UNKNOWN_FORMS = lines("""
    What is the capital of {Z}?
    Who wrote {Z}?
    Who wrote The {Z} of {Z2}?
    Where is {Z}?
    Who is {Z}?
    Who is {P} {Z}?
    What is {z}?
    What is a {z}?
    Define {z}.
    What does {z} mean?
    Explain {z}.
    What do you think about {z}?
    Who is the mayor of {C}?
    Who is the president of {Z}?
    Who is the president of {C}?
    What is the population of {C}?
    How many people live in {C}?
    How do I get from {C} to {C2}?
    How far is it from {C} to {C2}?
    What is the best restaurant in {C}?
    Which hotel in {C} is good?
    What happened in {C} in {n}?
    What happened in {n}?
    Who won the {z} cup in {n}?
    Who won the football game yesterday?
    What is the price of {z}?
    What is the price of gold today?
    What is the news today?
    What did {P} say yesterday?
    What is {P}'s phone number?
    How tall is {P}?
    When was {P} {Z} born?
    What is the temperature in {C} right now?
    What time is it?
    What day is it today?
    What is the date today?
    How do I repair a {i}?
    How do I build a {i}?
    How do I make a {z}?
    How does a {z} work?
    How does quantum mechanics work?
    Explain quantum mechanics.
    Explain the theory of {z}.
    Prove that {z} is {z2}.
    What is the opposite of {z}?
    What is the plural of {z}?
    How do you say {z} in French?
    Summarize the book {Z}.
    Summarize the history of {C}.
    Write an essay about {z}.
    Write a long essay about {C}.
    Write a program that plays {z}.
    What color is a {z}?
    What will happen next year?
    Will it rain tomorrow?
    Who will win the election?
    Which stock should I buy?
    What is the square root of {n}?
    What is {n} times {n2}?
    Should I invest in {z}?
    Can you book a flight to {C}?
    Can you send an email to {P}?
    What is the email address of {P}?
    Recommend a movie.
    Which film should I watch?
    What is the best programming language?
    Compare {z} and {z2}.
    Tell me about {Z}.
    Tell me everything about {C}.
    What is the chemical symbol of {z}?
    Give me a recipe for {z}.
    Who invented {z}?
    Who painted {Z}?
    What is my IP address?
    How many {z} are there in a {z2}?
""")


# Topics whose questions make sense about something invented.
INVENTABLE = [
    topic
    for topic in TOPICS
    if topic.name
    in ("capital", "capital of what", "continent", "language", "currency", "author", "place")
    + ("definition", "opposite", "synonym", "young", "chemical symbol", "material", "use")
]


def unknown(rng: Random) -> Exchange:
    """A question beyond the model, and the one answer it has for them all."""
    if rng.random() < 0.55:
        topic = rng.choice(INVENTABLE)
        name = names.invented(rng) if rng.random() < 0.3 else names.invented(rng).capitalize()
        fields = {**rng.choice(topic.facts), "x": name, "ax": with_article(name)}
        return exchange(restyle(phrasing(topic, rng).format(**fields), rng), UNKNOWN)
    question = rng.choice(UNKNOWN_FORMS).format(
        Z=names.invented(rng).capitalize(),
        Z2=names.invented(rng).capitalize(),
        z=names.invented(rng),
        z2=names.invented(rng),
        P=names.person(rng),
        C=names.city(rng),
        C2=names.city(rng),
        n=rng.randint(145, 2400),
        n2=rng.randint(145, 2400),
        i=rng.choice(names.ITEMS),
    )
    return exchange(restyle(question, rng), UNKNOWN)


STORY_FORMS = lines("""
    Tell me a story.
    Tell me a short story.
    Write a story.
    Write a short story.
    Can you tell me a story?
    Please tell me a story.
    I want to hear a story.
""")


def storytelling(rng: Random) -> Exchange:
    """A composed story, sometimes about a wanted hero."""
    hero, kind = rng.choice(names.PEOPLE), rng.choice(names.ANIMALS)
    question = rng.choice(STORY_FORMS)
    if rng.random() < 0.6:
        what = rng.choice((f"a {kind}", f"a {kind} named {hero}", f"a {kind} called {hero}"))
        question = f"{question.rstrip('.?')} about {what}."
    return exchange(restyle(question, rng), story(rng, hero, kind))


def coding(rng: Random) -> Exchange:
    """A known little Python function."""
    task, code = rng.choice(FUNCTIONS)
    forms = (
        "Write a Python function that {x}.",
        "Write a function that {x}.",
        "Write Python code that {x}.",
        "Show me a Python function that {x}.",
    )
    question = restyle(rng.choice(forms).format(x=task), rng)
    return exchange(question, f"```python\n{code}\n```")


SKILLS = {
    fact: 0.51,
    sums: 0.20,
    copy: 0.09,
    chatter: 0.07,
    unknown: 0.08,
    number_list: 0.012,
    listing: 0.025,
    storytelling: 0.01,
    coding: 0.013,
}
