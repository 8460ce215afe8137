"""Opposites, synonyms, grammar and translations."""

from scripts.bundled_model import facts
from scripts.bundled_model.topics.topic import Topic, table
from scripts.bundled_model.words import lines


def word_topics() -> list[Topic]:
    """Opposites, synonyms, grammar and translations."""
    opposites = table(facts.OPPOSITES)
    known = {fact["x"] for fact in opposites}
    opposites += [{"x": f["y"], "y": f["x"]} for f in opposites if f["y"] not in known]
    return [
        Topic(
            "opposite",
            opposites,
            "The opposite of {x} is {y}.",
            "{y}",
            lines("""
                What is the opposite of {x}?
                What's the opposite of {x}?
                Give me the opposite of {x}.
                Tell me the opposite of {x}.
                What is the opposite of the word {x}?
                Opposite of {x}?
                Which word is the opposite of {x}?
                What word means the opposite of {x}?
                Name the opposite of "{x}".
                What is an antonym of {x}?
                Give me an antonym for {x}.
                The opposite of {x} is
                What is the contrary of {x}?
                {x} is the opposite of what?
            """),
            lines("""
                Can you tell me the opposite of {x}?
                Which word means the opposite of {x}?
                What is the opposite of "{x}"?
            """),
        ),
        Topic(
            "synonym",
            table(facts.SYNONYMS),
            "Another word for {x} is {y}.",
            "{y}",
            lines("""
                What is another word for {x}?
                Give me another word for {x}.
                What is a synonym of {x}?
                Give me a synonym for {x}.
                Which word means the same as {x}?
                What's another word for {x}?
                Synonym of {x}?
                Tell me a word that means the same as {x}.
            """),
            lines("""
                Can you give me a synonym for {x}?
                What is another way to say {x}?
            """),
        ),
        Topic(
            "plural",
            table(facts.PLURALS),
            "The plural of {x} is {y}.",
            "{y}",
            lines("""
                What is the plural of {x}?
                What's the plural of {x}?
                Give me the plural of {x}.
                What is the plural form of {x}?
                Plural of {x}?
                Tell me the plural of {x}.
                How do you write the plural of {x}?
                What is the plural of the word {x}?
                One {x}, two what?
            """),
            lines("""
                Do you know the plural of {x}?
                What is the plural of "{x}"?
            """),
        ),
        Topic(
            "past tense",
            table(facts.PAST_TENSES),
            "The past tense of {x} is {y}.",
            "{y}",
            lines("""
                What is the past tense of {x}?
                What's the past tense of {x}?
                Give me the past tense of {x}.
                What is the past form of {x}?
                Past tense of {x}?
                Tell me the past tense of {x}.
                What is the past tense of the verb {x}?
                What is the past of {x}?
                What is the past tense of to {x}?
            """),
            lines("""
                Do you know the past tense of {x}?
                How do you form the past tense of {x}?
            """),
        ),
        Topic(
            "translation",
            [
                {"x": row[0], "lang": language, "y": word}
                for row in facts.rows(facts.TRANSLATIONS)
                for language, word in zip(facts.LANGUAGES, row[1:], strict=True)
            ],
            'The {lang} word for "{x}" is "{y}".',
            "{y}",
            lines("""
                How do you say {x} in {lang}?
                How do you say "{x}" in {lang}?
                What is {x} in {lang}?
                What is the {lang} word for {x}?
                Translate {x} into {lang}.
                Translate "{x}" to {lang}.
                Translate to {lang}: {x}
                Say {x} in {lang}.
                What's the {lang} for {x}?
                {x} in {lang}?
                How can I say {x} in {lang}?
                Give me the {lang} word for "{x}".
            """),
            lines("""
                Please translate {x} into {lang}.
                Tell me how to say {x} in {lang}.
            """),
        ),
    ]
