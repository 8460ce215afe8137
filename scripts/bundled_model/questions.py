"""How each fact is asked and answered: phrasings to train on, and others kept for measuring."""

from dataclasses import dataclass

from scripts.bundled_model import facts
from scripts.bundled_model.words import lines

Fact = dict[str, str]


@dataclass(frozen=True, slots=True)
class Topic:
    """Facts of one kind. Templates are filled from a fact's fields with str.format."""

    name: str
    facts: list[Fact]
    answer: str  # the one sentence every phrasing is answered with
    short: str  # the same when one word is asked for
    questions: tuple[str, ...]
    held_out: tuple[str, ...]  # phrasings never trained on


def table(text: str) -> list[Fact]:
    """A two-column table as facts with fields x and y."""
    return [{"x": x, "y": y} for x, y in facts.pairs(text)]


def with_article(noun: str) -> str:
    """`noun` with a or an."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def sentence(text: str) -> str:
    """text with a capital first letter."""
    return text[:1].upper() + text[1:]


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


def nature_topics() -> list[Topic]:
    """Animals, colours, elements, kinds of things, and what words mean."""
    plural = {"is": "is", "scissors": "are", "jeans": "are", "raisins": "are", "glasses": "are"}
    return [
        Topic(
            "young",
            [
                {**f, "ax": with_article(f["x"]), "ay": with_article(f["y"])}
                for f in table(facts.YOUNG)
            ],
            "A baby {x} is called {ay}.",
            "{y}",
            lines("""
                What is a baby {x} called?
                What do you call a baby {x}?
                What is a young {x} called?
                What is the name for a baby {x}?
                What do we call a young {x}?
                How do you call a baby {x}?
                What is the young of {ax} called?
                Tell me what a baby {x} is called.
            """),
            lines("""
                What's a baby {x} called?
                What is the word for a young {x}?
            """),
        ),
        Topic(
            "sound",
            [{**f, "ax": with_article(f["x"])} for f in table(facts.SOUNDS)],
            "{ax} {y}.",
            "{y}",
            lines("""
                What sound does {ax} make?
                What noise does {ax} make?
                What does {ax} say?
                Which sound does {ax} make?
                How does {ax} sound?
                What is the sound of {ax}?
                What sound do {x}s make?
                Tell me what sound {ax} makes.
            """),
            lines("""
                What kind of sound does {ax} make?
                Which noise does {ax} make?
            """),
        ),
        Topic(
            "legs",
            [{**f, "ax": with_article(f["x"])} for f in table(facts.LEGS)],
            "{ax} has {y} legs.",
            "{y}",
            lines("""
                How many legs does {ax} have?
                How many legs has {ax}?
                How many legs do {x}s have?
                What number of legs does {ax} have?
                Tell me how many legs {ax} has.
            """),
            lines("Do you know how many legs {ax} has?"),
        ),
        Topic(
            "colour",
            table(facts.COLOURS),
            "{x} is {y}.",
            "{y}",
            lines("""
                What color is {x}?
                What colour is {x}?
                Which color is {x}?
                What is the color of {x}?
                What's the color of {x}?
                Tell me the color of {x}.
                Which color does {x} have?
                What color does {x} have?
                Which colour has {x}?
            """),
            lines("""
                What colour does {x} have?
                Can you tell me what color {x} is?
            """),
        ),
        Topic(
            "definition",
            table(facts.DEFINITIONS),
            "{x} is {y}.",
            "{y}",
            lines("""
                What is {x}?
                What's {x}?
                Define {x}.
                What does the word for {x} mean?
                Explain what {x} is.
                Can you explain what {x} is?
                Tell me what {x} is.
                What exactly is {x}?
                Do you know what {x} is?
                Give me a definition of {x}.
                What is the meaning of {x}?
                What is meant by {x}?
                Describe {x}.
                Explain {x} to me.
                Tell me about {x}.
                I do not know what {x} is.
                How would you define {x}?
            """),
            lines("""
                Please explain what {x} is.
                Could you tell me what {x} is?
                In simple words, what is {x}?
            """),
        ),
        Topic(
            "kind",
            [
                {
                    "x": f["x"] if f["x"] in facts.UNCOUNTED else with_article(f["x"]),
                    "y": f["y"],
                    "ay": with_article(f["y"]),
                }
                for f in table(facts.KINDS)
            ],
            "{x} is {ay}.",
            "{y}",
            lines("""
                What kind of thing is {x}?
                What sort of thing is {x}?
                What type of thing is {x}?
                To which category does {x} belong?
                Is {x} {ay}?
                What category is {x} in?
                {x} is what kind of thing?
                Which kind of thing is {x}?
            """),
            lines("""
                Tell me what kind of thing {x} is.
                What category does {x} belong to?
            """),
        ),
        Topic(
            "chemical symbol",
            table(facts.SYMBOLS),
            "The chemical symbol of {x} is {y}.",
            "{y}",
            lines("""
                What is the chemical symbol of {x}?
                What is the chemical symbol for {x}?
                What is the symbol for {x}?
                What's the symbol of {x}?
                Give me the chemical symbol of {x}.
                Which symbol does {x} have?
                Chemical symbol of {x}?
                Tell me the chemical symbol for {x}.
            """),
            lines("""
                Which chemical symbol stands for {x}?
                What is the element symbol of {x}?
            """),
        ),
        Topic(
            "element",
            [{"x": f["y"], "y": f["x"]} for f in table(facts.SYMBOLS)],
            "{x} is the chemical symbol of {y}.",
            "{y}",
            lines("""
                Which element has the symbol {x}?
                What element has the symbol {x}?
                Which element is {x}?
                What does the symbol {x} stand for in chemistry?
                {x} is the chemical symbol of which element?
            """),
            lines("What element is written {x}?"),
        ),
        Topic(
            "material",
            [{**f, "be": plural.get(f["x"], "is")} for f in table(facts.MATERIALS)],
            "{x} {be} made of {y}.",
            "{y}",
            lines("""
                What {be} {x} made of?
                What {be} {x} made from?
                Of what {be} {x} made?
                Tell me what {x} {be} made of.
                Which material {be} {x} made of?
                From what {be} {x} made?
                What do you need to make {x}?
            """),
            lines("Do you know what {x} {be} made of?"),
        ),
        Topic(
            "use",
            table(facts.USES),
            "You use {x} for {y}.",
            "{y}",
            lines("""
                What do you use {x} for?
                What is {x} used for?
                What can I do with {x}?
                What do people use {x} for?
                Why do people use {x}?
                What is the purpose of {x}?
                For what do you use {x}?
                Tell me what {x} is for.
                What is {x} for?
            """),
            lines("""
                What do we use {x} for?
                What can you do with {x}?
            """),
        ),
    ]


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
