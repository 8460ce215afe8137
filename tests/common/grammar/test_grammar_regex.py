"""Python's `re.fullmatch` decides what a translated regex may accept."""

import random
import re

import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer

from common.errors import BadRequest
from common.grammar.matcher import compile_grammar, load_tokens
from common.grammar.python_regex import regex_to_lark
from tests.common.made_tokenizers import byte_level

PATTERNS = [
    *(r"\b\w+\b", r"\b[A-Z]{2}\d{3}\b", r"^abc$", r"\Aabc\Z", r"a(?=b)b", r"(foo|\bbar\b|baz$)x?"),
    *(r"(?=.*\d)(?=.*[a-z])[a-z0-9]{3,6}", r"(?!foo)\w{3,5}", r"(?!foo$)f\w*", r"(?!.*aa)[ab]+"),
    *(r"\bfoo\b.*\bbar\b", r"(\b[a-z]+\b ?){1,3}", r"[^\W\d_]+", r"(?i)hello", r"a\Bb|a\b"),
    *(r"\s+\S+", r"x*\b", r"", r"a|", r"(?s).+\b", r"[\w.+-]+@[\w-]+\.[a-z]{2,}", r"\d{3}-\d{4}"),
    *(r'a/b"\\c', r"[]a]+[\]\-x]", r"é\b.", r"\bé", r"(a|ab)(c|bcd)(d*)", r"^\$\d+\.\d{2}$"),
    *(r"\w\b\W\b\w", r"(?:^a|b)c", r"(a$|ab)", r"(?x) a b  # c", r"(\bx)?y", r"(?i:B)c"),
    *(r"(?a:\w)+", r"\D+", r"[^a]b", r"a{2}?b+?", r".*a.{3}", r"(?:x\b|y) ?z"),
]
PARTS = ["a", "b", "c", "d", "foo", "bar", "x", "y", " ", "1", "23", "_", "é", "-", ".", "\n"]
PARTS += ["A", "B", "$", "H", "ello", '"', "/", "\\", "@", "z"]
MATCHES = ["AB123", "abc", "foo bar", "a b c", "hello", "HELLO", "barx", "a@b.cc", "123-4567"]
MATCHES += ['a/b"\\c', "$12.50", "foox", "abcd", "]a]-", "é.", "1a2", "ab1", "aab", "a b", "x z"]
MATCHES += ["ab", "ac", "bc", "Bc"]


def texts():
    draw = random.Random(1)
    made = ["".join(draw.choices(PARTS, k=draw.randrange(6))) for _ in range(300)]
    return made + MATCHES


def accepts(matcher: LLMatcher, tokenizer: Tokenizer, text: str) -> bool:
    copy = matcher.deep_copy()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return copy.try_consume_tokens(ids) == len(ids) and copy.is_accepting()


@pytest.fixture(scope="module")
def tokens():
    tokenizer = byte_level()
    return load_tokens(tokenizer.to_str(), tokenizer.get_vocab_size(), ())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_accepts_what_python_matches(pattern, tokens):
    matcher = compile_grammar(tokens, regex_to_lark(pattern))
    compiled = re.compile(pattern)
    matched = 0
    for text in texts():
        expected = compiled.fullmatch(text) is not None
        assert accepts(matcher, byte_level(), text) == expected, text
        matched += expected
    assert matched or pattern in (r"a{2}?b+?",), "no text shows that anything is accepted"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(a)\1", "groupref"),
        (r"(?<=a)b", "look-behind"),
        (r"(\ba)*", "endless"),
        ("(" * 3000 + ")" * 3000, "nested"),
        (r"(?m)^a$", "(?m)"),
        ("[", "unterminated"),
        ("a{99999999999}", "too large"),
        (r"\b", "nothing matches"),
        (r"a(?:(?=b)b)?c", "top level"),
        (r"(?=a\b)a", "inside look-around"),
        (r"(?:\b\w ){64}" * 9 + "(?:\\b.|\\B.){60}", "too many anchors"),
    ],
)
def test_it_says_what_it_cannot_do(pattern, why):
    with pytest.raises(BadRequest) as refused:
        regex_to_lark(pattern)
    assert why in refused.value.message
