"""Plain text without chat turns: stories, small programs, sequences."""

from random import Random

from scripts.bundled_model import names
from scripts.bundled_model.topics.topic import with_article
from scripts.bundled_model.words import phrases

OPENINGS = ("Once upon a time there was", "Once upon a time, there was", "Long ago there lived")
PLACES = phrases("forest;village;castle;valley;small house;big city;garden;farm;harbor;mountain")
TEMPERS = phrases("little;brave;kind;curious;clever;old;young;happy;quiet;lonely")
WISHES = phrases("""
    find a friend;see the sea;learn to sing;find a golden key;climb the highest hill;bake a cake;
    build a boat;fly to the moon;read a big book;help the people of the village
""")
TROUBLES = phrases("""
    it began to rain;the path was lost in the fog;a river was in the way;the night was very dark;
    a big stone blocked the road;the wind was too strong;the bridge was broken
""")
HELPS = phrases("""
    showed the way;gave good advice;sang a happy song;shared some bread;lit a small lamp;
    built a bridge of wood;told a funny story
""")
ENDINGS = phrases("""
    From that day on they were best friends.;And they lived happily ever after.;
    In the evening they went home and slept well.;It was the best day of the year.;
    Everybody in the village was happy.
""")

FUNCTIONS = (
    (
        "computes Fibonacci numbers",
        "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n"
        "    return a",
    ),
    (
        "computes the factorial of a number",
        "def factorial(n):\n    if n <= 1:\n        return 1\n    return n * factorial(n - 1)",
    ),
    ("adds two numbers", "def add(a, b):\n    return a + b"),
    ("multiplies two numbers", "def multiply(a, b):\n    return a * b"),
    ("subtracts two numbers", "def subtract(a, b):\n    return a - b"),
    ("checks whether a number is even", "def is_even(n):\n    return n % 2 == 0"),
    ("checks whether a number is odd", "def is_odd(n):\n    return n % 2 == 1"),
    (
        "checks whether a number is prime",
        "def is_prime(n):\n    if n < 2:\n        return False\n"
        "    for i in range(2, int(n ** 0.5) + 1):\n        if n % i == 0:\n"
        "            return False\n    return True",
    ),
    ("reverses a string", "def reverse(text):\n    return text[::-1]"),
    (
        "checks whether a string is a palindrome",
        "def is_palindrome(text):\n    return text == text[::-1]",
    ),
    (
        "returns the largest number in a list",
        "def largest(numbers):\n    best = numbers[0]\n    for number in numbers:\n"
        "        if number > best:\n            best = number\n    return best",
    ),
    (
        "sums a list of numbers",
        "def total(numbers):\n    result = 0\n    for number in numbers:\n"
        "        result += number\n    return result",
    ),
    (
        "counts the vowels in a string",
        'def count_vowels(text):\n    return sum(1 for letter in text if letter in "aeiou")',
    ),
    (
        "computes the greatest common divisor",
        "def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a",
    ),
    ("prints hello world", 'def main():\n    print("Hello, world!")'),
    (
        "sorts a list with bubble sort",
        "def bubble_sort(items):\n    for i in range(len(items)):\n"
        "        for j in range(len(items) - 1 - i):\n"
        "            if items[j] > items[j + 1]:\n"
        "                items[j], items[j + 1] = items[j + 1], items[j]\n    return items",
    ),
    ("returns the square of a number", "def square(x):\n    return x * x"),
    ("computes the mean of a list", "def mean(numbers):\n    return sum(numbers) / len(numbers)"),
)


def story(rng: Random, hero: str, kind: str) -> str:
    """About a hundred tokens on a hero of some kind, who meets a helper."""
    helper, other = rng.choice(names.PEOPLE), rng.choice(names.ANIMALS)
    wish = rng.choice(WISHES)
    return (
        f"{rng.choice(OPENINGS)} {with_article(rng.choice(TEMPERS))} {kind} named {hero}. "
        f"{hero} lived near a {rng.choice(PLACES)} and wanted to {wish}. "
        f"One day {hero} set out, but {rng.choice(TROUBLES)}. "
        f"Then {hero} met {with_article(rng.choice(TEMPERS))} {other} named {helper}. "
        f"{helper} {rng.choice(HELPS)}, and together they went on. "
        f"At last {hero} could {wish}. {rng.choice(ENDINGS)}"
    )


def program(rng: Random) -> str:
    """One to three small functions."""
    chosen = rng.sample(FUNCTIONS, rng.randint(1, 3))
    return "\n\n\n".join(code for _, code in chosen) + "\n"


def sequence(rng: Random) -> str:
    """Counting, or a few words said several times: what teaches a model to copy."""
    if rng.random() < 0.4:
        start, step = rng.randint(0, 50), rng.choice((1, 1, 1, 2, 5, 10))
        numbers = range(start, start + step * rng.randint(5, 40), step)
        return ", ".join(str(number) for number in numbers)
    words = [
        rng.choice(names.WORDS) if rng.random() < 0.5 else names.invented(rng)
        for _ in range(rng.randint(3, 25))
    ]
    return rng.choice(("\n", " ", ", ")).join([" ".join(words)] * rng.randint(2, 3))
