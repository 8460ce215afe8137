"""Reasoning and content are told apart, whatever the pieces; tokens of reasoning are counted."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.api.reasoning.effort import effort_variables
from common.api.reasoning.formats import BY_NAME, FORMATS, detect
from common.api.reasoning.parser import ReasoningParser
from common.api.tools.deltas import ReasoningDelta
from tests.common.api.tool_texts import cut

THINK = BY_NAME["qwen3"]


def parse(pieces, *, is_open=False, format_=THINK):
    parser = ReasoningParser(format_, is_open=is_open)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    kinds = ["r" if isinstance(delta, ReasoningDelta) else "c" for delta in deltas]
    assert kinds == sorted(kinds, reverse=True)  # reasoning comes first
    texts = dict.fromkeys("rc", "")
    for kind, delta in zip(kinds, deltas, strict=True):
        texts[kind] += delta.text
    return texts["r"], texts["c"]


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "content"),
    [
        ("plain", False, "", "plain"),
        ("  plain\n", False, "", "  plain\n"),
        (
            "<think>\nHm, 1 < 2.\n\nYes.\n</think>\n\nAnswer\n",
            False,
            "Hm, 1 < 2.\n\nYes.",
            "Answer\n",
        ),
        ("\n<think>a</think>b", False, "a", "b"),
        ("<think>\n\n</think>\n\nb", False, "", "b"),
        ("Hm</think>b", True, "Hm", "b"),
        ("\nHm\n</think>\n\nb</think>", True, "Hm", "b</think>"),
        ("<think>cut off ", False, "cut off", ""),
        ("cut off <", True, "cut off <", ""),
        ("<thin", False, "", "<thin"),
        ("<thinking>", False, "", "<thinking>"),
        (
            "The tag <think> opens, </think> closes",
            False,
            "",
            "The tag <think> opens, </think> closes",
        ),
        ("</think>b", True, "", "b"),
        ("", True, "", ""),
    ],
)
def test_texts(text, is_open, reasoning, content):
    assert parse([text], is_open=is_open) == (reasoning, content)
    assert parse(text, is_open=is_open) == (reasoning, content)


def oracle(text, is_open, marks):
    """The same in hindsight, by a regular expression."""
    opener = "" if is_open else rf"\s*{re.escape(marks.opener)}"
    match = re.match(rf"{opener}(.*?)(?:{re.escape(marks.closer)}|$(?!\n))(.*)", text, re.DOTALL)
    if match is None:
        return "", text
    is_closed = marks.closer in text[: match.end(1) + len(marks.closer)][match.start(1) :]
    return match[1].strip(), match[2].lstrip() if is_closed else ""


@pytest.mark.parametrize("format_", FORMATS, ids=lambda each: each.name)
@given(data=st.data(), borders=st.lists(st.integers(0, 500), max_size=8), is_open=st.booleans())
@settings(max_examples=100)
def test_the_outcome_does_not_depend_on_the_pieces(format_, data, borders, is_open):
    parts = [format_.opener, format_.closer, format_.opener[:3], format_.closer[:4], " ", "\n", "é"]
    text = "".join(data.draw(st.lists(st.sampled_from(parts) | st.text(max_size=5), max_size=8)))
    whole = parse([text], is_open=is_open, format_=format_)
    assert whole == oracle(text, is_open, format_)
    assert parse(cut(text, borders), is_open=is_open, format_=format_) == whole
    assert parse(text, is_open=is_open, format_=format_) == whole


@given(data=st.data(), is_open=st.booleans())
@settings(max_examples=150)
def test_tokens_are_counted_up_to_the_closing_mark(data, is_open):
    pieces = data.draw(
        st.lists(
            st.sampled_from(["<think>", "</think>", "</th", "ink>", "a", " b", "\n"]), max_size=9
        )
    )
    text = "".join(pieces)
    offsets = [sum(map(len, pieces[:n])) for n in range(len(pieces))]
    parser = ReasoningParser(THINK, is_open=is_open)
    for piece, offset in zip(pieces, offsets, strict=True):
        parser.push(piece, [offset])
    parser.finish()
    begins = is_open or text.lstrip().startswith("<think>")
    after = 0 if is_open else text.find("<think>") + len("<think>")
    end = text.find("</think>", after)
    inside = len(text) if end < 0 else end + len("</think>")
    assert parser.num_tokens == (sum(o < inside for o in offsets) if begins else 0)


def test_reasoning_is_shown_as_it_comes():
    parser = ReasoningParser(THINK, is_open=False)
    assert parser.push("<think>\n") == []
    assert parser.push("Let me") == [ReasoningDelta("Let me")]
    assert parser.push(" think <") == [ReasoningDelta(" think")]
    assert parser.push("b") == [ReasoningDelta(" <b")]


@pytest.mark.parametrize(
    ("template", "tokens", "expected"),
    [
        ("{% if enable_thinking is false %}<think>\n\n</think>{% endif %}", (), "qwen3"),
        ("{{ content.split('</think>')[-1] }}", (), "qwen3"),
        ("{{ '[THINK]' }}", (), "mistral"),
        ("Here is my thought process: … Here is my response:", (), "granite"),
        ("<seed:think>", (), "seed_oss"),
        ("◁think▷", (), "kimi"),
        ("<|START_THINKING|>", (), "cohere"),
        ("{{ messages }}", ("<think>", "</think>"), "qwen3"),
        ("{{ messages }}", ("<think>",), None),
    ],
)
def test_the_template_tells_the_format(template, tokens, expected):
    found = detect(template, tokens)
    assert (found.name if found else None) == expected


def test_the_end_of_the_prompt_tells_where_the_answer_begins():
    assert THINK.is_open("<|im_start|>assistant\n<think>\n")
    assert not THINK.is_open("what is <think>?<|im_end|>\n<|im_start|>assistant\n")
    assert THINK.is_closed("<think>\n\n</think>\n\n")
    assert not THINK.is_closed("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("effort", "template", "given_variables", "expected"),
    [
        (None, "enable_thinking", {}, {}),
        ("high", "no switch", {}, {"reasoning_effort": "high"}),
        (
            "none",
            "{% if enable_thinking %}",
            {},
            {"reasoning_effort": "none", "enable_thinking": False},
        ),
        ("low", "{% if thinking %}", {}, {"reasoning_effort": "low", "thinking": True}),
        ("none", "enable_thinking", {"enable_thinking": True}, {"reasoning_effort": "none"}),
    ],
)
def test_effort_in_the_words_of_the_template(effort, template, given_variables, expected):
    assert effort_variables(effort, template, given_variables) == expected
