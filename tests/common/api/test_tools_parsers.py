"""The tool call parser: whatever the pieces, the same calls."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.api.tools.deltas import CallDelta, ContentDelta
from common.api.tools.formats import BY_NAME

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, "}{\\"</x>"], "b": null}}\n</tool_call>'
ARGUMENTS = '{"a": [1, "}{\\"</x>"], "b": null}'
SWAPPED = '<tool_call>{"arguments": {"x": 1}, "name": "g"}</tool_call>'
QUOTED = '<tool_call>{"name": "h", "arguments": "{\\"x\\": 1}"}</tool_call>'
NAMES = frozenset({"f", "g", "h", "now"})
NO_ARGUMENTS = '<tool_call>{"name": "now"}</tool_call>'


def parse(pieces, max_calls=None, format_name="hermes"):
    """(content, [(name, arguments)]) as a client adds up the deltas."""
    parser = BY_NAME[format_name].parser(NAMES, max_calls)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    content = ""
    calls: list[list[str]] = []
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            content += delta.text
            continue
        if delta.name is not None:
            assert delta.index == len(calls)
            assert (delta.call_id or "").startswith("call_")
            calls.append([delta.name, ""])
        calls[delta.index][1] += delta.arguments
    assert parser.num_calls == len(calls)
    return content, [tuple(call) for call in calls]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("no call at all\n", "no call at all\n", []),
        (CALL, "", [("f", ARGUMENTS)]),
        (f"Let me see.\n\n{CALL}\n", "Let me see.", [("f", ARGUMENTS)]),
        (f"{CALL}\n{CALL}", "", [("f", ARGUMENTS)] * 2),
        (f"{CALL}\n and {CALL} done\n", "and done\n", [("f", ARGUMENTS)] * 2),
        (f"A.\n\n{CALL}\nB.", "A.\n\nB.", [("f", ARGUMENTS)]),
        (SWAPPED, "", [("g", '{"x": 1}')]),
        (QUOTED, "", [("h", '{"x": 1}')]),
        (NO_ARGUMENTS, "", [("now", "{}")]),
        ("a <tool_call>not json</tool_call> b", "a <tool_call>not json</tool_call> b", []),
        ('<tool_call>{"name": ""}</tool_call>', '<tool_call>{"name": ""}</tool_call>', []),
        ("x <tool_call", "x <tool_call", []),
        ("x <tool_call>half", "x <tool_call>half", []),
        ('<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', "", [("f", '{"a": 1}')]),
        ("1 < 2 </tool_call>", "1 < 2 </tool_call>", []),
    ],
)
def test_texts(text, content, calls):
    assert parse([text]) == (content, calls)
    assert parse(text) == (content, calls)  # character by character


PARTS = [CALL, SWAPPED, QUOTED, "<tool_call>", "</tool_call>", "{", '"name": "f"', " text\n", "é\n"]


@given(st.lists(st.sampled_from(PARTS), max_size=6).map("".join), st.data(), st.booleans())
@settings(max_examples=300)
def test_the_outcome_does_not_depend_on_the_pieces(text, data, only_one):
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    max_calls = 1 if only_one else None
    assert parse(pieces, max_calls) == parse([text], max_calls)


def test_further_calls_are_dropped_if_only_one_is_allowed():
    assert parse([CALL + SWAPPED], max_calls=1) == ("", [("f", ARGUMENTS)])


def test_arguments_are_streamed_as_they_come():
    parser = BY_NAME["hermes"].parser(NAMES)
    parser.push('<tool_call>{"name": "f", "arguments": {"code": "')
    assert parser.push("print(1)") == [CallDelta(0, "print(1)")]


def test_long_names_do_not_cost_quadratic_time():
    text = '<tool_call>{"name": "' + "x" * 50_000
    parser = BY_NAME["hermes"].parser(NAMES)
    deltas = [delta for character in text for delta in parser.push(character)] + parser.finish()
    assert "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta)) == text


def test_streamed_arguments_are_json():
    [(_, arguments)] = parse(list(CALL))[1]
    assert json.loads(arguments) == {"a": [1, '}{"</x>'], "b": None}
