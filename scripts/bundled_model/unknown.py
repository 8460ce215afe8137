"""Questions beyond the model, and the one answer it has for them all."""

from random import Random

from scripts.bundled_model import names
from scripts.bundled_model.fact_skill import TOPICS, phrasing
from scripts.bundled_model.topics.topic import with_article
from scripts.bundled_model.turns import Exchange, exchange
from scripts.bundled_model.wording import restyle
from scripts.bundled_model.words import lines

UNKNOWN = "I am a very small demonstration model and I do not know that."
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
