"""Items in, chat messages out."""

import pytest

from common.api.responses.items import read_input
from common.api.responses.messages import messages_of
from common.api.responses.pages import Page, page_of
from common.api.responses.prompt import shortened
from common.errors import BadRequest


def read(given):
    return read_input(given, lambda item_id: None)


def seen(given, instructions=None):
    """What the chat template gets, without what is not there."""
    return [
        message.model_dump(exclude_none=True, exclude_defaults=True)
        for message in messages_of(read(given), instructions)
    ]


def call(call_id, name="f", arguments="{}"):
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def output(call_id, value="4"):
    return {"type": "function_call_output", "call_id": call_id, "output": value}


def chat_call(call_id, name="f"):
    return {"id": call_id, "function": {"name": name}}


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Hi", [USER]),
        ([USER], [USER]),
        ([{"type": "message", "role": "user", "content": "Hi", "status": None}], [USER]),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "a"},
                        {"type": "text", "text": "b"},
                    ],
                }
            ],
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            [
                USER,
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [
                        {"type": "output_text", "text": "Ho", "annotations": [], "logprobs": []}
                    ],
                },
                {"role": "developer", "content": "be kind"},
            ],
            [
                USER,
                {"role": "assistant", "content": "Ho"},
                {"role": "developer", "content": "be kind"},
            ],
        ),
        (
            [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
            [{"role": "assistant", "content": "no"}],
        ),
    ],
)
def test_messages(given, expected):
    assert seen(given) == expected


def test_one_turn_of_the_assistant_is_one_message():
    given = [
        USER,
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [thought("hm")]},
        {"role": "assistant", "content": "Let me see."},
        call("c1"),
        call("c2", "g"),
        output("c1", "4 °C"),
        output("c2", [{"type": "input_text", "text": "wet"}]),
        {"role": "assistant", "content": "Cold."},
        {"role": "assistant", "content": "And wet."},
    ]
    assert seen(given) == [
        USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning": "hm",
            "tool_calls": [chat_call("c1"), chat_call("c2", "g")],
        },
        {"role": "tool", "content": "4 °C", "tool_call_id": "c1", "name": "f"},
        {"role": "tool", "content": "wet", "tool_call_id": "c2", "name": "g"},
        {"role": "assistant", "content": "Cold."},
        {"role": "assistant", "content": "And wet."},
    ]


def thought(text):
    return {"type": "reasoning_text", "text": text}


def test_a_summary_stands_in_for_hidden_reasoning():
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "thought hard"}]}
    assert seen([item, {"role": "assistant", "content": "4"}]) == [
        {"role": "assistant", "content": "4", "reasoning": "thought hard"}
    ]
    encrypted = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    assert seen([encrypted, USER]) == [USER]


def test_instructions_come_first_and_join_a_leading_system_message():
    assert seen("Hi", "Be brief.") == [{"role": "system", "content": "Be brief."}, USER]
    for role in ("system", "developer"):
        given = [{"role": role, "content": "Be kind."}, USER]
        assert seen(given, "Be brief.") == [
            {"role": role, "content": "Be brief.\n\nBe kind."},
            USER,
        ]


@pytest.mark.parametrize(
    ("item", "param", "says"),
    [
        (5, "input[0]", "object"),
        ({"type": "computer_call"}, "input[0].type", "computer_call"),
        ({"type": ["x"]}, "input[0].type", "not supported"),
        ({"type": "web_search_call", "id": "ws_1"}, "input[0].type", "web_search_call"),
        ({"role": "tool", "content": "x"}, "input[0].role", "'tool'"),
        ({"role": "user"}, "input[0]", "content"),
        ({"role": "user", "content": 5}, "input[0].content", "array"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0]", "text"),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]},
            "input[0].content[0].type",
            "input_image",
        ),
        (
            {"role": "user", "content": [{"type": "input_file", "file_id": "x"}]},
            "input[0].content[0].type",
            "input_file",
        ),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "input[0]", "arguments"),
        ({"type": "function_call_output", "output": "x"}, "input[0]", "call_id"),
        ({"role": "user", "content": "x", "id": "x" * 200}, "input[0].id", "128"),
        ({"role": "user", "content": "x", "id": 5}, "input[0].id", "str"),
        ({"type": "item_reference", "id": "msg_none"}, "input[0].id", "no stored item"),
        ({"id": "msg_none"}, "input[0].id", "no stored item"),
    ],
)
def test_what_cannot_be_read_is_named(item, param, says):
    with pytest.raises(BadRequest, match=says) as caught:
        read([item])
    assert caught.value.param == param


def test_an_output_needs_its_call():
    with pytest.raises(BadRequest, match="c9"):
        messages_of(read([call("c1"), output("c9")]), None)


def test_references_are_looked_up():
    (item,) = read([{"role": "user", "content": "x", "id": "msg_1"}])
    for reference in ({"type": "item_reference", "id": "msg_1"}, {"id": "msg_1", "type": None}):
        assert read_input([reference], {"msg_1": item}.get) == [item]


def test_an_id_stands_for_one_item():
    twice = [{"role": "user", "content": text, "id": "msg_1"} for text in "ab"]
    with pytest.raises(BadRequest, match="twice") as caught:
        read(twice)
    assert caught.value.param == "input[1].id"


def test_shortening_keeps_the_start_and_the_last_turn():
    given = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "a"},
        call("c1"),
        output("c1"),
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "3"},
    ]
    versions = shortened(messages_of(read(given), None))
    assert [[m.content for m in version] for version in versions] == [
        ["S", "2", "b", "3"],
        ["S", "3"],
    ]


def test_pages_cover_every_item_once():
    items = read([{"role": "user", "content": str(n), "id": f"msg_{n}"} for n in range(7)])
    for ascending, expected in ((True, range(7)), (False, range(6, -1, -1))):
        for limit in (1, 2, 3, 7, 20):
            found, after = [], None
            while True:
                page = page_of(items, Page(limit, ascending, after))
                found += [item.id for item in page["data"]]
                assert page["first_id"] == page["data"][0].id
                after = page["last_id"]
                if not page["has_more"]:
                    break
            assert found == [f"msg_{n}" for n in expected]
    middle = page_of(items, Page(20, True, after="msg_1", before="msg_4"))
    assert [item.id for item in middle["data"]] == ["msg_2", "msg_3"]
    assert page_of([], Page())["data"] == []
    with pytest.raises(BadRequest, match="msg_9"):
        page_of(items, Page(after="msg_9"))
