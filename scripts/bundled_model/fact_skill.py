"""Facts asked and answered, one at a time or with follow-ups."""

from random import Random

from scripts.bundled_model.topics.catalogue import all_topics
from scripts.bundled_model.topics.topic import Fact, Topic, sentence
from scripts.bundled_model.turns import Exchange, exchange
from scripts.bundled_model.wording import restyle, worn

TOPICS = all_topics()
# A topic's share grows slower than its number of facts, so that small topics are learned too.
TOPIC_WEIGHTS = [max(len(topic.facts), 20) ** 0.7 for topic in TOPICS]
FOLLOW_UPS = ("And {x}?", "What about {x}?", "and {x}?", "And what about {x}?", "How about {x}?")
CAN_FOLLOW = {"capital", "language", "currency", "author", "opposite", "plural", "past tense"}
CAN_FOLLOW |= {"colour", "continent", "young", "chemical symbol", "translation", "definition"}
QUOTABLE = {"author", "opposite", "synonym", "plural", "past tense", "number word"}
ONE_WORD = ("Answer in one word.", "One word only.", "Answer briefly.", "Just the answer, please.")


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
