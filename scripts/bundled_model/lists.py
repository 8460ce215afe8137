"""Texts to repeat and lists to tell."""

from random import Random

from scripts.bundled_model import facts, names
from scripts.bundled_model.fact_skill import TOPICS
from scripts.bundled_model.topics.topic import sentence
from scripts.bundled_model.turns import Exchange, exchange
from scripts.bundled_model.wording import restyle
from scripts.bundled_model.words import phrases

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
