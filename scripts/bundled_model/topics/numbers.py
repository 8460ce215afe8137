"""How many of something there are, numbers as words, superlatives."""

from scripts.bundled_model import facts
from scripts.bundled_model.topics.topic import Topic, table
from scripts.bundled_model.words import lines


def number_topics() -> list[Topic]:
    """How many of something there are, numbers as words, superlatives."""
    words = [{"x": facts.number_word(n), "y": str(n)} for n in (*range(21), *range(30, 101, 10))]
    return [
        Topic(
            "count",
            [
                {"x": x, "y": y, "what": x.split(" ", 1)[0], "where": x.partition(" ")[2]}
                for x, y in facts.pairs(facts.COUNTS)
            ],
            "There are {y} {where}.",
            "{y}",
            lines("""
                How many {x}?
                How many {what} are there {where}?
                How many {what} are {where}?
                Tell me how many {what} there are {where}.
                What is the number of {x}?
                How many {what} do you find {where}?
                Do you know how many {what} there are {where}?
                The number of {x} is
            """),
            lines("""
                Can you tell me how many {what} there are {where}?
                How many {what} would I find {where}?
            """),
        ),
        Topic(
            "superlative",
            table(facts.SUPERLATIVES),
            "{y} is {x}.",
            "{y}",
            lines("""
                What is {x}?
                What's {x}?
                Tell me {x}.
                Name {x}.
                Do you know {x}?
                Can you tell me {x}?
                What is {x} called?
                Which one is {x}?
                I want to know {x}.
                What do you know about {x}?
            """),
            lines("""
                Please tell me {x}.
                Could you name {x}?
            """),
        ),
        Topic(
            "number word",
            words,
            "{x} is {y}.",
            "{y}",
            lines("""
                Write {x} in digits.
                What is {x} in digits?
                Write the number {x} as digits.
                How do you write {x} as a number?
                What number is {x}?
                Write {x} as a number.
            """),
            lines("Can you write {x} in digits?"),
        ),
        Topic(
            "number in words",
            [{"x": f["y"], "y": f["x"]} for f in words],
            "{x} in words is {y}.",
            "{y}",
            lines("""
                Write {x} in words.
                What is {x} in words?
                How do you write {x} in words?
                Spell the number {x}.
                Write the number {x} in words.
                How do you say {x} in words?
            """),
            lines("Can you write {x} in words?"),
        ),
    ]
