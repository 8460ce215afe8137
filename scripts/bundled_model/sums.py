"""Small sums in digits, in words and as stories; which number is larger."""

from random import Random

from scripts.bundled_model import facts, names
from scripts.bundled_model.turns import Exchange, exchange
from scripts.bundled_model.wording import restyle, worn
from scripts.bundled_model.words import phrases

SUM_FORMS = {
    "+": phrases("""
    What is {a} + {b}?; {a} + {b}; {a}+{b}; {a}+{b}=?; {a} + {b} =; What is {a} plus {b}?
    How much is {a} plus {b}?; Calculate {a} + {b}.; Add {a} and {b}.; {a} plus {b}
    What is the sum of {a} and {b}?; What do you get if you add {a} and {b}?
    How much is {a}+{b}?; What's {a} plus {b}?; Compute {a} + {b}; What's {a}+{b}?
"""),
    "-": phrases("""
    What is {a} - {b}?; {a} - {b}; {a}-{b}; {a}-{b}=?; {a} - {b} =; What is {a} minus {b}?
    How much is {a} minus {b}?; Calculate {a} - {b}.; Subtract {b} from {a}.; {a} minus {b}
    What is the difference of {a} and {b}?; How much is {a}-{b}?; What's {a} minus {b}?
    Compute {a} - {b}; Take {b} away from {a}.; What's {a}-{b}?
"""),
    "*": phrases("""
    What is {a} * {b}?; {a} * {b}; {a}*{b}; {a} x {b}; {a} * {b} =; What is {a} times {b}?
    How much is {a} times {b}?; Calculate {a} * {b}.; Multiply {a} by {b}.; {a} times {b}
    What is the product of {a} and {b}?; What is {a} multiplied by {b}?
    What's {a} times {b}?; Compute {a} * {b}; What is {a} x {b}?; Multiply {a} and {b}.
    What's {a}*{b}?
"""),
    "/": phrases("""
    What is {a} / {b}?; {a} / {b}; {a}/{b}; What is {a} divided by {b}?; {a} / {b} =
    How much is {a} divided by {b}?; Calculate {a} / {b}.; Divide {a} by {b}.
    {a} divided by {b}; What's {a} divided by {b}?
"""),
}


SUM_HELD_OUT = {
    "+": ("Can you add {a} and {b}?", "Tell me what {a} plus {b} is.", "What does {a} + {b} make?"),
    "-": ("Can you subtract {b} from {a}?", "Tell me what {a} minus {b} is."),
    "*": ("Can you multiply {a} by {b}?", "Tell me what {a} times {b} is."),
    "/": ("Can you divide {a} by {b}?", "Tell me what {a} divided by {b} is."),
}


def operands(operation: str, rng: Random) -> tuple[int, int, int]:
    """Two numbers and their result, within what the model is meant to know."""
    if operation == "+":
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        return a, b, a + b
    if operation == "-":
        a, b = sorted((rng.randint(0, 20), rng.randint(0, 20)), reverse=True)
        return a, b, a - b
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if operation == "*":
        return a, b, a * b
    b = max(b, 1)
    return a * b, b, a


def word_problem(rng: Random) -> Exchange:
    """A sum told as a story of apples."""
    thing = rng.choice(["apples", "coins", "books", "eggs", "cookies", "pens", "balls", "stamps"])
    a, b = rng.randint(1, 12), rng.randint(1, 8)
    who = rng.choice(["I", names.person(rng)])
    have, do, me = ("have", "do", "You have") if who == "I" else ("has", "does", f"{who} has")
    if rng.random() < 0.5:
        change, result = rng.choice(("get {b} more", "buy {b} more", "find {b} more")), a + b
    else:
        a, b = max(a, b), min(a, b)
        change, result = rng.choice(("lose {b}", "give away {b}", "sell {b}")), a - b
    if who != "I":
        verb, _, rest = change.partition(" ")
        change = f"{verb}s {rest}"
    question = f"{who} {have} {a} {thing} and {change.format(b=b)}. "
    question += f"How many {thing} {do} {who} have{rng.choice([' now', ''])}?"
    return exchange(question, f"{me} {result} {thing}.")


def sums(rng: Random) -> Exchange:
    """A small sum, in digits or in words."""
    kind = rng.random()
    if kind < 0.07:
        return word_problem(rng)
    if kind < 0.13:
        return comparison(rng)
    operation = rng.choice("+++---**/")
    a, b, result = operands(operation, rng)
    form = rng.choice(SUM_FORMS[operation])
    in_words = rng.random() < 0.08
    shown = (facts.number_word(a), facts.number_word(b)) if in_words else (a, b)
    form = worn(form, rng) if rng.random() < 0.25 else form
    question = form.format(a=shown[0], b=shown[1])
    question = restyle(question, rng) if rng.random() < 0.5 else question
    return exchange(question, f"{a} {operation} {b} = {result}.")


def comparison(rng: Random) -> Exchange:
    """Which number is larger, or whether one is even."""
    a, b = rng.sample(range(101), 2)
    if rng.random() < 0.35:
        parity = rng.choice(("even", "odd"))
        is_so = (a % 2 == 0) == (parity == "even")
        question = rng.choice((f"Is {a} {parity}?", f"Is {a} an {parity} number?"))
        right = "even" if a % 2 == 0 else "odd"
        return exchange(question, f"{'Yes' if is_so else 'No'}, {a} is {right}.")
    word = rng.choice(("larger", "bigger", "greater", "smaller", "less"))
    wanted = min(a, b) if word in ("smaller", "less") else max(a, b)
    other = a + b - wanted
    question = rng.choice(("Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?"))
    verb = "smaller" if word in ("smaller", "less") else "larger"
    return exchange(question.format(w=word, a=a, b=b), f"{wanted} is {verb} than {other}.")


# A bar stands for a line end.
