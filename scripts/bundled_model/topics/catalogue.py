"""Every topic, in a fixed order: phrasings to train on, and others kept for measuring."""

from scripts.bundled_model.topics.countries import country_topics
from scripts.bundled_model.topics.culture import culture_topics
from scripts.bundled_model.topics.nature import nature_topics
from scripts.bundled_model.topics.numbers import number_topics
from scripts.bundled_model.topics.sequences import day_topics, order_topics
from scripts.bundled_model.topics.topic import Topic
from scripts.bundled_model.topics.vocabulary import word_topics


def all_topics() -> list[Topic]:
    """Every topic, in a fixed order."""
    return [
        *country_topics(),
        *culture_topics(),
        *word_topics(),
        *nature_topics(),
        *order_topics(),
        *day_topics(),
        *number_topics(),
    ]
