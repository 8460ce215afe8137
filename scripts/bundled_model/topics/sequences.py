"""What comes before and after: days, months, letters; lengths of months, ordinals."""

from scripts.bundled_model import facts
from scripts.bundled_model.topics.topic import Fact, Topic
from scripts.bundled_model.words import lines


def order_facts(names: list[str]) -> tuple[list[Fact], list[Fact]]:
    """What comes after each name and what comes before it, in a circle."""
    after = [{"x": name, "y": names[(i + 1) % len(names)]} for i, name in enumerate(names)]
    before = [{"x": name, "y": names[i - 1]} for i, name in enumerate(names)]
    return after, before


def order_topics() -> list[Topic]:
    """Days, months, letters: what comes next, what came before."""
    topics = []
    for kind, names in (
        ("day", list(facts.DAYS)),
        ("month", list(facts.MONTHS)),
        ("letter", list(facts.LETTERS)),
    ):
        after, before = order_facts(names)
        if kind == "letter":
            after, before = after[:-1], before[1:]
        fill = {"kind": kind}
        topics.append(
            Topic(
                f"{kind} after",
                [{**fact, **fill} for fact in after],
                "{y} comes after {x}.",
                "{y}",
                lines("""
                    What {kind} comes after {x}?
                    Which {kind} comes after {x}?
                    What comes after {x}?
                    Which {kind} follows {x}?
                    What is the {kind} after {x}?
                    What is the next {kind} after {x}?
                    After {x} comes which {kind}?
                    Tell me the {kind} after {x}.
                    Which {kind} comes directly after {x}?
                    What {kind} comes right after {x}?
                    Which {kind} is next after {x}?
                    Name the {kind} after {x}.
                    {x} is followed by which {kind}?
                """),
                lines("""
                    What {kind} follows {x}?
                    Which {kind} is right after {x}?
                """),
            )
        )
        topics.append(
            Topic(
                f"{kind} before",
                [{**fact, **fill} for fact in before],
                "{y} comes before {x}.",
                "{y}",
                lines("""
                    What {kind} comes before {x}?
                    Which {kind} comes before {x}?
                    What comes before {x}?
                    Which {kind} is before {x}?
                    What is the {kind} before {x}?
                    What is the {kind} just before {x}?
                    Before {x} comes which {kind}?
                    Tell me the {kind} before {x}.
                    Which {kind} comes directly before {x}?
                    What {kind} comes right before {x}?
                    Which {kind} precedes {x}?
                """),
                lines("""
                    What {kind} is right before {x}?
                    Name the {kind} before {x}.
                """),
            )
        )
    return topics


def day_topics() -> list[Topic]:
    """Today and tomorrow, lengths of months, ordinals."""
    after, before = order_facts(list(facts.DAYS))
    months = [
        {"x": month, "y": str(days), "nth": facts.ORDINALS[i]}
        for i, (month, days) in enumerate(facts.MONTHS.items())
    ]
    return [
        Topic(
            "tomorrow",
            after,
            "If today is {x}, tomorrow is {y}.",
            "{y}",
            lines("""
                If today is {x}, what day is tomorrow?
                Today is {x}. What day is tomorrow?
                If it is {x} today, which day is tomorrow?
                Today is {x}, so what is tomorrow?
                What day is tomorrow if today is {x}?
            """),
            lines("It is {x} today. What day is it tomorrow?"),
        ),
        Topic(
            "yesterday",
            before,
            "If today is {x}, yesterday was {y}.",
            "{y}",
            lines("""
                If today is {x}, what day was yesterday?
                Today is {x}. What day was yesterday?
                If it is {x} today, which day was yesterday?
                Today is {x}, so what was yesterday?
                What day was yesterday if today is {x}?
            """),
            lines("It is {x} today. What day was it yesterday?"),
        ),
        Topic(
            "month length",
            months,
            "{x} has {y} days.",
            "{y}",
            lines("""
                How many days does {x} have?
                How many days are in {x}?
                How many days are there in {x}?
                How long is {x}?
                How many days has {x}?
                Tell me how many days {x} has.
            """),
            lines("What is the number of days in {x}?"),
        ),
        Topic(
            "month order",
            months,
            "The {nth} month of the year is {x}.",
            "{x}",
            lines("""
                What is the {nth} month of the year?
                Which month is the {nth} month?
                What is the {nth} month?
                Which is the {nth} month of the year?
                Name the {nth} month of the year.
                Which month is the {nth} one?
            """),
            lines("Tell me the {nth} month of the year."),
        ),
    ]
