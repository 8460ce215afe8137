"""Capitals both ways, continents, languages, currencies."""

from scripts.bundled_model import facts
from scripts.bundled_model.topics.topic import Fact, Topic
from scripts.bundled_model.words import lines


def country_topics() -> list[Topic]:
    """Capitals both ways, continents, languages, currencies."""
    names = ("x", "capital", "continent", "language", "currency")
    table_rows = [
        dict(zip(names, row, strict=True))
        for row in ([*row, *[""] * (5 - len(row))] for row in facts.rows(facts.COUNTRIES))
    ]
    seats = [row for row in table_rows if row["x"] != "England"]

    def having(field: str) -> list[Fact]:
        return [{"x": row["x"], "y": row[field]} for row in table_rows if row.get(field)]

    return [
        Topic(
            "capital",
            having("capital"),
            "The capital of {x} is {y}.",
            "{y}",
            lines("""
                What is the capital of {x}?
                What is the capital city of {x}?
                What's the capital of {x}?
                Which city is the capital of {x}?
                Tell me the capital of {x}.
                Name the capital of {x}.
                Can you tell me the capital of {x}?
                Do you know the capital of {x}?
                I would like to know the capital of {x}.
                Capital of {x}?
                The capital of {x} is
                {x} has which capital?
                What is {x}'s capital?
                Give me the capital of {x}.
                What city is the capital of {x}?
                Which is the capital of {x}?
                What is the name of the capital of {x}?
                {x}: what is its capital?
                How is the capital of {x} called?
            """),
            lines("""
                Please name the capital city of {x}.
                Could you tell me what the capital of {x} is?
                What do you call the capital of {x}?
                {x}'s capital city?
            """),
        ),
        Topic(
            "capital of what",
            [{"x": row["capital"], "y": row["x"]} for row in seats if row["capital"] != row["x"]],
            "{x} is the capital of {y}.",
            "{y}",
            lines("""
                {x} is the capital of which country?
                Of which country is {x} the capital?
                Which country has {x} as its capital?
                What country is {x} in?
                In which country is {x}?
                Where is {x}?
                Which country is {x} in?
                What country has the capital {x}?
                Tell me which country {x} is the capital of.
                {x} is in which country?
                Where can I find {x}?
            """),
            lines("""
                Which country does {x} belong to?
                {x} is the capital city of what country?
            """),
        ),
        Topic(
            "continent",
            having("continent"),
            "{x} is in {y}.",
            "{y}",
            lines("""
                Which continent is {x} in?
                What continent is {x} in?
                On which continent is {x}?
                On what continent is {x}?
                In which part of the world is {x}?
                Where is {x}?
                Tell me the continent of {x}.
                {x} is on which continent?
                {x} is in which part of the world?
                What continent is {x} a part of?
                Which continent does {x} belong to?
                Where is {x} located?
            """),
            lines("""
                {x} is part of which continent?
                What continent does {x} lie on?
            """),
        ),
        Topic(
            "language",
            having("language"),
            "People in {x} speak {y}.",
            "{y}",
            lines("""
                What language do people speak in {x}?
                What language is spoken in {x}?
                Which language is spoken in {x}?
                Which language do they speak in {x}?
                What do people speak in {x}?
                What is the language of {x}?
                What is the official language of {x}?
                Tell me the language of {x}.
                What languages are spoken in {x}?
                What language do they speak in {x}?
            """),
            lines("""
                Which language do people in {x} speak?
                What's the main language in {x}?
            """),
        ),
        Topic(
            "currency",
            having("currency"),
            "The currency of {x} is {y}.",
            "{y}",
            lines("""
                What is the currency of {x}?
                Which currency is used in {x}?
                What money do they use in {x}?
                What currency does {x} use?
                Which currency does {x} have?
                How do you pay in {x}?
                Tell me the currency of {x}.
                What is the money of {x} called?
                What money is used in {x}?
            """),
            lines("""
                What currency do people use in {x}?
                Which money do they use in {x}?
            """),
        ),
    ]
