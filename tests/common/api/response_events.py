"""The events of a response, checked against the SDK's types and against the documented order."""

import json
from typing import get_args

from openai.types.responses import ResponseStreamEvent

TYPES = {
    event.model_fields["type"].annotation.__args__[0]: event
    for event in get_args(get_args(ResponseStreamEvent)[0])
}
LAST = ("response.completed", "response.incomplete", "response.failed")


def parse_events(text):
    """The data of each event of a whole body; comments are left out."""
    found = []
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        first, second = block.split("\n")
        data = json.loads(second.removeprefix("data: "))
        assert first == f"event: {data['type']}"
        found.append(data)
    assert text.endswith("\n\n") or not text
    return found


def typed(event):
    """As the SDK's class for it, strictly: a wrong or missing field raises."""
    return TYPES[event["type"]].model_validate(event)


def check_stream(events):
    """Order, numbers and sums of a whole stream; gives the final response."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [typed(event).type for event in events]
    assert kinds[0] == "response.created"
    assert [kind for kind in kinds if kind in LAST] == [kinds[-1]]
    states = 3 if kinds[1] == "response.queued" else 2
    assert kinds[states - 1] in ("response.in_progress", *LAST)
    final = events[-1]["response"]
    rest = events[states:-1]
    items = [_check_item(n, rest) for n in range(len(final["output"]))]
    assert sum(map(len, items)) == len(rest)
    assert [event for item in items for event in item] == rest  # one after another
    assert [item[-1]["item"] for item in items] == final["output"]
    assert {event["response"]["id"] for event in events if "response" in event} == {final["id"]}
    return final


def _check_item(n, events):
    mine = [event for event in events if event["output_index"] == n]
    item = mine[-1]["item"]
    shape = [event["type"].removeprefix("response.") for event in mine]
    deltas = "".join(event["delta"] for event in mine if "delta" in event)
    short = [kind for i, kind in enumerate(shape) if not kind.endswith("delta") or i == 0]
    assert len({event["item_id"] for event in mine if "item_id" in event} | {item["id"]}) == 1
    if item["type"] == "function_call":
        assert short == ["output_item.added", "function_call_arguments.done", "output_item.done"]
        assert mine[-2]["arguments"] == item["arguments"] == deltas
        return mine
    name = "output_text" if item["type"] == "message" else "reasoning_text"
    assert short == [
        "output_item.added",
        "content_part.added",
        f"{name}.done",
        "content_part.done",
        "output_item.done",
    ]
    (part,) = item["content"]
    assert part["text"] == mine[-3]["text"] == deltas
    assert mine[-2]["part"] == part
    if name == "output_text":
        logprobs = [entry for event in mine if "delta" in event for entry in event["logprobs"]]
        assert part["logprobs"] == mine[-3]["logprobs"] == logprobs
    return mine
