from __future__ import annotations

import json

import pytest

from benchmarks.stream import AnswerStream, StreamError, error_message

USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}
DONE = "[DONE]"


def text(shown, finish=None, **more):
    return {"choices": [{"index": 0, "text": shown, "finish_reason": finish, **more}]}


def delta(finish=None, **fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def replay(*chunks):
    """The answer to a stream whose chunk k comes at second k."""
    stream = AnswerStream()
    for second, chunk in enumerate(chunks):
        stream.feed(f"data: {chunk if chunk == DONE else json.dumps(chunk)}\n\n".encode(), second)
    return stream.finish(len(chunks))


def test_completion():
    answer = replay(text("a"), text("b"), text("c", "length"), USAGE, DONE)
    assert answer.arrivals_s == (0, 1, 2)
    assert answer.end_s == 2
    assert (answer.text, answer.finish_reason) == ("abc", "length")
    assert (answer.input_tokens, answer.output_tokens, answer.is_counted) == (9, 3, True)
    assert answer.chunk_tokens == ()


def test_chat_role_is_no_token_and_a_bare_finish_is_none_either():
    first = delta(role="assistant", content="")
    chunks = [delta(content=c) for c in "abc"]
    answer = replay(first, *chunks, delta(finish="stop"), USAGE, DONE)
    assert answer.arrivals_s == (1, 2, 3)
    assert answer.end_s == 4


def test_role_together_with_text_is_a_token():
    answer = replay(
        delta(role="assistant", content="a"), delta(role="assistant", content="b"), DONE
    )
    assert answer.arrivals_s == (0, 1)


def test_the_last_token_may_have_no_text():
    answer = replay(text("a"), text("b"), text("", "length"), USAGE, DONE)
    assert answer.arrivals_s == (0, 1, 2)


def test_a_finish_that_comes_with_the_last_text_is_no_token_of_its_own():
    """One of the three tokens never had a chunk: its text came with the next one's."""
    stream = AnswerStream()
    stream.feed(f"data: {json.dumps(delta(content='a'))}\n\n".encode(), 0.0)
    end = [delta(content="é"), delta(finish="stop"), USAGE]
    stream.feed("".join(f"data: {json.dumps(chunk)}\n\n" for chunk in end).encode(), 1.0)
    assert stream.finish(2.0).arrivals_s == (0.0, 1.0)


def test_an_empty_chunk_is_a_token_whose_text_is_held_back():
    answer = replay(text(""), text(""), text("é", "length"), USAGE, DONE)
    assert answer.arrivals_s == (0, 1, 2)


def test_reasoning_and_tool_calls_are_tokens():
    answer = replay(
        delta(role="assistant", content=""),
        delta(reasoning="hm"),
        delta(reasoning_content="hm"),
        delta(tool_calls=[{"index": 0, "function": {"name": "f"}}]),
        delta(finish="tool_calls"),
        USAGE,
        DONE,
    )
    assert answer.arrivals_s == (1, 2, 3)


def test_token_ids_tell_the_tokens_of_a_chunk():
    answer = replay(
        text("a", token_ids=[1]), text("", token_ids=[2, 3]), text("", "stop", token_ids=[]), DONE
    )
    assert answer.arrivals_s == (0, 1)
    assert answer.chunk_tokens == (1, 2)
    assert (answer.output_tokens, answer.is_counted) == (3, True)


def test_running_usage_tells_the_tokens_of_a_chunk():
    def chunk(total, shown):
        return text(shown) | {"usage": {"prompt_tokens": 9, "completion_tokens": total}}

    answer = replay(chunk(1, "a"), chunk(1, ""), chunk(4, "bcd"), DONE)
    assert answer.arrivals_s == (0, 2)
    assert answer.chunk_tokens == (1, 3)
    assert answer.output_tokens == 4


def test_usage_on_the_last_chunk_is_the_whole_answers():
    answer = replay(text("a"), text("b"), text("", "stop") | {"usage": USAGE["usage"]}, DONE)
    assert answer.arrivals_s == (0, 1, 2)
    assert answer.chunk_tokens == ()
    assert answer.output_tokens == 3


def test_without_usage_chunks_are_counted_and_it_is_said():
    answer = replay(text("a"), text("b", "stop"))
    assert (answer.output_tokens, answer.is_counted, answer.input_tokens) == (2, False, None)


def test_coalesced_chunks_are_one_arrival_each():
    answer = replay(text("a"), text("bc"), text("", "stop"), {"usage": {"completion_tokens": 9}})
    assert answer.arrivals_s == (0, 1)
    assert answer.output_tokens == 9


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        ({"error": {"message": "out of blocks", "code": 500}}, "error event: out of blocks"),
        ({"error": "plain"}, "error event: plain"),
        ({"choices": "none"}, "not JSON of the OpenAI form"),
        ("not an object", "not JSON of the OpenAI form"),
    ],
)
def test_an_error_in_mid_stream(chunk, reason):
    with pytest.raises(StreamError, match=reason):
        replay(text("a"), chunk)


def test_an_event_named_error():
    with pytest.raises(StreamError, match="error event: gone"):
        AnswerStream().feed(b'event: error\ndata: {"message": "gone"}\n\n', 0.0)


def test_null_error_is_no_error():
    assert replay(text("a", "stop") | {"error": None}).output_tokens == 1


@pytest.mark.parametrize("chunks", [[], [text("a")], [text("a"), USAGE]])
def test_a_stream_that_just_ends(chunks):
    with pytest.raises(StreamError, match="ended without"):
        replay(*chunks)


def test_an_answer_without_tokens():
    with pytest.raises(StreamError, match="without any token"):
        replay(delta(role="assistant", content=""), delta(finish="stop"), DONE)


def test_a_broken_stream_still_tells_what_came():
    stream = AnswerStream()
    stream.feed(f"data: {json.dumps(text('a'))}\n\n".encode(), 3.0)
    with pytest.raises(StreamError):
        stream.finish(4.0)
    assert (stream.arrivals_so_far(), stream.text) == ((3.0,), "a")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "a\\n  b"}}', "a b"),
        (b'{"detail": "not found"}', "not found"),
        (b"<h1>Bad gateway</h1>", "<h1>Bad gateway</h1>"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"x" * 999, "x" * 200),
    ],
)
def test_error_message(body, message):
    assert error_message(body) == message
