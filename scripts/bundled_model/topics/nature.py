"""Animals, colours, elements, kinds of things, and what words mean."""

from scripts.bundled_model import facts
from scripts.bundled_model.topics.topic import Topic, table, with_article
from scripts.bundled_model.words import lines


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
