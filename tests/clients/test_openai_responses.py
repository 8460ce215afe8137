"""/v1/responses with real processes: the same answers as chat, and nothing left behind."""

import asyncio
import json
from typing import Literal

import openai
import pydantic
import pytest

from tests.clients.conftest import KEY, MODEL
from tests.common.api.response_events import check_stream

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

QUESTION = "What is the capital of France?"


async def chat(client, *messages):
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": ("user", "assistant")[n % 2], "content": text}
            for n, text in enumerate(messages)
        ],
        temperature=0,
        max_tokens=40,
    )
    return answer.choices[0].message.content


async def converse(client):
    """One conversation in all the ways there are to hold it, and the same in chat."""
    create = client.responses.create
    options = {"model": MODEL, "temperature": 0, "max_output_tokens": 40}
    expected = await chat(client, QUESTION)
    whole = await create(input=QUESTION, **options)
    assert whole.output_text == expected

    stream = await create(input=QUESTION, stream=True, **options)
    events = [event.to_dict() async for event in stream]
    assert check_stream(events)["output"][0]["content"][0]["text"] == expected

    behind = await create(input=QUESTION, background=True, **options)
    behind = await polled(client, behind.id, "queued", "in_progress")
    assert behind.output_text == expected

    second = await create(input="And of Spain?", previous_response_id=whole.id, **options)
    assert second.output_text == await chat(client, QUESTION, expected, "And of Spain?")
    items = await client.responses.input_items.list(second.id)
    assert [item.content[0].text for item in items.data] == ["And of Spain?"]


class Verdict(pydantic.BaseModel):
    decision: Literal["yes", "no"]
    certain: bool


TOOL = {
    "type": "function",
    "name": "set_light",
    "parameters": {
        "type": "object",
        "properties": {"on": {"type": "boolean"}},
        "required": ["on"],
        "additionalProperties": False,
    },
    "strict": True,
}


async def keep_to_the_form(client):
    """Formats and forced calls hold from the first token, which P makes, to the last, of D."""
    options = {"model": MODEL, "temperature": 1.5, "max_output_tokens": 200}
    for seed in range(3):
        parsed = await client.responses.parse(
            input="Is it raining?", text_format=Verdict, extra_body={"seed": seed}, **options
        )
        assert parsed.status == "completed"
        assert parsed.output_parsed.decision in ("yes", "no")
        made = await client.responses.create(
            input="Light, please.",
            tools=[TOOL],
            tool_choice="required",
            parallel_tool_calls=False,
            extra_body={"seed": seed},
            **options,
        )
        (call,) = made.output
        assert (call.type, call.name) == ("function_call", "set_light")
        assert list(json.loads(call.arguments)) == ["on"]


async def polled(client, response_id, *statuses):
    """The response when its status is another one than these."""
    for _ in range(1200):
        response = await client.responses.retrieve(response_id)
        if response.status not in statuses:
            return response
        await asyncio.sleep(0.05)
    raise AssertionError(f"{response_id} stays {response.status}")


async def leave(client):
    """End runs early, by every way out."""
    long = {"model": MODEL, "max_output_tokens": 1500, "extra_body": {"ignore_eos": True}}
    stream = await client.responses.create(input="Count.", stream=True, **long)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    for _ in range(20):  # where a machine pauses, a run may be over before it is cancelled
        made = await client.responses.create(input="Count.", background=True, **long)
        cancelled = await client.responses.cancel(made.id)
        if cancelled.status != "incomplete":
            break
    assert cancelled.status == "cancelled"
    made = await client.responses.create(input="Count.", background=True, **long)
    await client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)


def test_responses_are_those_of_chat(site):
    async def run():
        client = openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=KEY, max_retries=0)
        async with client:
            await asyncio.wait_for(converse(client), 120)
            await asyncio.wait_for(keep_to_the_form(client), 120)
            await asyncio.wait_for(leave(client), 120)

    asyncio.run(run())
    site.at_rest()
