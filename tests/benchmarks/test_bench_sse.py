from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from benchmarks.sse import SSEEvent, SSEParser

line_text = st.text(
    st.characters(exclude_characters="\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", codec="utf-8"),
    max_size=12,
)
event = st.tuples(
    st.sampled_from(["", "error", "done"]), st.lists(line_text, min_size=1, max_size=3)
)
newline = st.sampled_from(["\n", "\r\n"])


@st.composite
def wires(draw):
    """Events as a server might write them, with comments between, and the bytes cut anywhere."""
    parts = []
    for name, lines in draw(st.lists(event, max_size=5)):
        end = draw(newline)
        if draw(st.booleans()):
            parts.append(f": ping{end}")
        if name:
            parts.append(f"event: {name}{end}")
        parts += [f"data: {line}{end}" for line in lines]
        parts.append(end)
    wire = "".join(parts).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    return [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]


@given(wires())
def test_agrees_with_the_openai_sdk_however_the_bytes_are_cut(pieces):
    parser = SSEParser()
    ours = [event for piece in pieces for event in parser.feed(piece)] + parser.close()
    theirs = SSEDecoder().iter_bytes(iter([b"".join(pieces)]))
    expected = [(event.event or "", event.data) for event in theirs if event.data]
    assert [(name, data.decode()) for name, data in ours if data] == expected


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_one_byte_at_a_time(end):
    wire = f"data: a{end}data:b{end}{end}: comment{end}id: 7{end}data:  c{end}{end}".encode()
    parser = SSEParser()
    events = [event for byte in wire for event in parser.feed(bytes([byte]))] + parser.close()
    assert events == [SSEEvent("", b"a\nb"), SSEEvent("", b" c")]


def test_an_event_comes_out_with_its_last_byte_not_later():
    parser = SSEParser()
    assert parser.feed(b"data: 1\n") == []
    assert parser.feed(b"\ndata: 2") == [SSEEvent("", b"1")]
    assert parser.feed(b"\n\n") == [SSEEvent("", b"2")]


def test_the_name_does_not_stick_to_the_next_event():
    events = SSEParser().feed(b"event: error\ndata: x\n\ndata: y\n\nevent: lonely\n\n")
    assert events == [SSEEvent("error", b"x"), SSEEvent("", b"y")]


def test_close_delivers_what_the_server_forgot_to_end():
    parser = SSEParser()
    assert parser.feed(b"data: [DONE]") == []
    assert parser.close() == [SSEEvent("", b"[DONE]")]
    assert parser.close() == []
