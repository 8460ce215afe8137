"""What the model learns to do in a chat, and how often it is asked to.

A skill is a function of a random generator that returns turns, user first, assistant last.
Notes to search and tools to call have files of their own, notes.py and tools.py.
"""

from random import Random

from scripts.bundled_model import names
from scripts.bundled_model.fact_skill import fact
from scripts.bundled_model.lists import copy, listing, number_list
from scripts.bundled_model.small_talk import CHATTER
from scripts.bundled_model.stories import FUNCTIONS, story
from scripts.bundled_model.sums import sums
from scripts.bundled_model.topics.topic import sentence
from scripts.bundled_model.turns import Exchange, exchange
from scripts.bundled_model.unknown import unknown
from scripts.bundled_model.wording import restyle
from scripts.bundled_model.words import lines


def chatter(rng: Random) -> Exchange:
    """Greetings, small talk and single questions."""
    questions, answer = rng.choice(CHATTER)
    question = rng.choice(questions)
    if rng.random() < 0.4:
        question = rng.choice((question.lower(), question.rstrip("!?."), sentence(question)))
    return exchange(question, answer)


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
