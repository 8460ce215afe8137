"""Stop strings against a search through the whole text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.stop_strings import StopMatcher

LETTERS = st.text(alphabet="ab👍", max_size=24)
STOPS = st.lists(st.text(alphabet="ab👍", min_size=1, max_size=4), min_size=1, max_size=4)


def whole(text, stops, include):
    """The first position where a stop string is complete; the longest that ends there."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def cut(text, borders):
    at = sorted({min(border, len(text)) for border in borders} | {0, len(text)})
    return [text[a:b] for a, b in zip(at, at[1:], strict=False)]


@given(LETTERS, STOPS, st.lists(st.integers(0, 24), max_size=8), st.booleans())
@settings(max_examples=400, deadline=None)
def test_same_outcome_however_the_text_is_cut(text, stops, borders, include):
    matcher = StopMatcher(stops, include_stop=include)
    shown = ""
    for piece in cut(text, borders):
        shown += matcher.push(piece)
        if matcher.found:
            break
    else:
        shown += matcher.finish()
    assert (shown, matcher.found) == whole(text, stops, include)


@given(LETTERS, STOPS)
@settings(max_examples=200, deadline=None)
def test_nothing_is_shown_that_a_stop_string_takes_back(text, stops):
    """And nothing is held back that no stop string could take."""
    matcher = StopMatcher(stops)
    shown = ""
    for n, character in enumerate(text, 1):
        shown += matcher.push(character)
        if matcher.found:
            return
        held = text[len(shown) : n]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["Hello wor", "ld\n", "\nUser", ": hi"], ["Hello wor", "ld", "", ""]),
        (["ab\n", "c\n\nUse", "d"], ["ab", "\nc", "\n\nUsed"]),
        (["\n\nUser:"], [""]),
    ],
)
def test_a_stop_string_across_pieces(pieces, shown):
    matcher = StopMatcher(["\n\nUser:"])
    assert [matcher.push(piece) for piece in pieces] == shown


def test_held_text_comes_out_at_the_end():
    matcher = StopMatcher(["STOP"])
    assert matcher.push("now STO") == "now "
    assert matcher.finish() == "STO"
    assert matcher.found is None
