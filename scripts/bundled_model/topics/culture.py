"""Books, works of art, inventions, places."""

from scripts.bundled_model import facts
from scripts.bundled_model.topics.topic import Topic, table
from scripts.bundled_model.words import lines


def culture_topics() -> list[Topic]:
    """Books, works of art, inventions, places."""
    makers = []
    for deed, who in facts.pairs(facts.MAKERS):
        verb, _, work = deed.partition(" ")
        makers.append({"x": deed, "verb": verb, "work": work, "y": who})
    passive = [fact for fact in makers if fact["verb"] != "was"]
    return [
        Topic(
            "author",
            table(facts.AUTHORS),
            "{x} was written by {y}.",
            "{y}",
            lines("""
                Who wrote {x}?
                Who is the author of {x}?
                Who was the author of {x}?
                {x} was written by whom?
                By whom was {x} written?
                Tell me who wrote {x}.
                Do you know who wrote {x}?
                Which author wrote {x}?
                Which writer wrote {x}?
                Name the author of {x}.
                Who's the author of {x}?
                Can you tell me who wrote {x}?
                The author of {x} is
                Who is the writer of {x}?
                Author of {x}?
                Who wrote the book {x}?
                Who created {x}?
            """),
            lines("""
                Which person wrote {x}?
                {x} is by which author?
                I forgot who wrote {x}.
            """),
        ),
        Topic(
            "maker",
            makers,
            "{y} {x}.",
            "{y}",
            lines("""
                Who {x}?
                Do you know who {x}?
                Tell me who {x}.
                Can you tell me who {x}?
                What is the name of the person who {x}?
                Which person {x}?
                I want to know who {x}.
                Name the person who {x}.
            """),
            lines("""
                Could you say who {x}?
                What was the name of the person who {x}?
            """),
        ),
        Topic(
            "made by",
            passive,
            "{y} {x}.",
            "{y}",
            lines("""
                By whom was {work} {verb}?
                {work} was {verb} by whom?
                Who was it that {verb} {work}?
                {work} was {verb} by which person?
            """),
            lines("By who was {work} {verb}?"),
        ),
        Topic(
            "place",
            table(facts.PLACES),
            "{x} is in {y}.",
            "{y}",
            lines("""
                Where is {x}?
                Where is {x} located?
                Where can I find {x}?
                Where can you see {x}?
                In which place is {x}?
                Tell me where {x} is.
                Where do I find {x}?
                What is the location of {x}?
                Where would I go to see {x}?
            """),
            lines("""
                Do you know where {x} is?
                Where can I visit {x}?
            """),
        ),
    ]
