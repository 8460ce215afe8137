"""How people type: lead-ins, typing errors, lost words. Knows no facts."""

from random import Random

from scripts.bundled_model.topics.topic import sentence
from scripts.bundled_model.words import lines, phrases, words

LEAD_INS = lines("""
    Please tell me:
    Quick question:
    Question:
    Hey,
    Hi!
    Hello,
    Tell me,
    One more question:
    Okay,
    I have a question:
    Now tell me:
    Please answer:
    Good. Next:
    I wonder:
    My homework asks:
    Listen,
    Excuse me,
    Sorry,
    Just curious:
    Another one:
    Here is a question for you:
    By the way,
    So,
    Well,
    And
    Hello again!
    Thanks!
    Great!
    Next question:
    Let me ask:
    I need help:
    Can you help me?
    You surely know this:
""")
ENDINGS = ("Thanks!", "Please.", "Thank you.", "I need it for school.", "Do you know?", "I forgot.")


def with_typo(text: str, rng: Random) -> str:
    """text with one letter lost, doubled, or swapped with the next."""
    spot = rng.randrange(len(text) - 1)
    if not (text[spot].isalpha() and text[spot + 1].isalpha()):
        return text
    changed = rng.choice(
        (text[spot + 1], text[spot] * 2 + text[spot + 1], text[spot + 1] + text[spot])
    )
    return text[:spot] + changed + text[spot + 2 :]


def restyle(question: str, rng: Random) -> str:
    """The same question as another person would type it."""
    text = sentence(question)
    if rng.random() < 0.25:
        lead = rng.choice(LEAD_INS)
        text = f"{lead} {text if lead.endswith(('!', '.')) else question}"
    if rng.random() < 0.06:
        text = text.replace(" the ", " ", 1)
    if rng.random() < 0.04:
        text = with_typo(text, rng)
    if rng.random() < 0.22:
        text = text.rstrip("?.")
    elif rng.random() < 0.08:
        text = f"{text} {rng.choice(ENDINGS)}"
    if rng.random() < 0.22:
        text = text.lower()
    elif rng.random() < 0.01:
        text = text.upper()
    return text


SMALL_WORDS = set(words("what is the of a tell me do you can which please to does it that are"))
ADDED_WORDS = phrases("""
    please; exactly; actually; really; maybe; just; then; again; now; so; also; in fact; for me
    quickly; correctly; you think; of course; anyway; do you think; might; would; called
""")


def worn(template: str, rng: Random) -> str:
    """The template with some small words lost and perhaps one added, as people really write.

    What is left are the words that carry the meaning, and those the model has to rely on.
    """
    kept = [
        word
        for word in template.split(" ")
        if word.strip("?.,").lower() not in SMALL_WORDS or rng.random() < 0.7
    ]
    if rng.random() < 0.4:
        kept.insert(rng.randint(0, len(kept)), rng.choice(ADDED_WORDS))
    return " ".join(kept)
