"""The official openai SDK on /v1/responses over a real server."""

import asyncio
import contextlib
import json

import openai
import pydantic
import pytest

from common.api.app import ApiSettings
from common.api.scripted import Script, ScriptedEngine
from common.errors import Overloaded, Unavailable
from common.metrics import Metrics
from common.request import Constraint
from common.text import TextModel
from tests.common.api.apps import MODEL, app_of, create_app, says, served, text_model, tokens
from tests.common.api.response_events import check_stream
from tests.common.made_tokenizers import byte_level

ANSWER = "Hello there, naïve 👍🏽 world! 日本語"
CALLS = (
    'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n'
    '</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
TOOLS = [
    {
        "type": "function",
        "name": name,
        "description": "Tells it.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    }
    for name in ("get_weather", "get_time")
]


@contextlib.contextmanager
def connected(app, key="unused"):
    with (
        served(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


def sdk(engine, **settings):
    return connected(app_of(engine, **settings))


@pytest.fixture(scope="module")
def engine():
    return says(ANSWER, num_cached_tokens=3)


@pytest.fixture(scope="module")
def client(engine):
    with sdk(engine) as made:
        yield made


def prompt(engine):
    """The text of the latest prompt."""
    return text_model().decode(engine.requests[-1].prompt_token_ids)


def test_create(client):
    answer = client.responses.create(model=MODEL, input="Hi", metadata={"k": "v"}, user="u")
    assert answer.output_text == ANSWER
    assert answer.status == "completed"
    assert answer.output[0].role == "assistant"
    assert answer.error is None and answer.incomplete_details is None
    assert answer.metadata == {"k": "v"} and answer.user == "u"
    assert answer.usage.output_tokens == len(tokens(ANSWER))
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.usage.output_tokens_details.reasoning_tokens == 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer._request_id
    type(answer).model_validate(answer.to_dict())  # strict, as the SDK itself is not


def test_the_model_may_be_left_out_and_must_exist(client):
    assert client.responses.create(input="Hi").model == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="other", input="Hi")
    assert caught.value.code == "model_not_found"


def test_stream(client):
    events = list(client.responses.create(model=MODEL, input="Hi", stream=True))
    final = check_stream([event.to_dict() for event in events])
    assert final["output"][0]["content"][0]["text"] == ANSWER
    assert len([e for e in events if e.type == "response.output_text.delta"]) > 3


def test_the_stream_helper(client):
    with client.responses.stream(model=MODEL, input="Hi") as stream:
        snapshots = [e.snapshot for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == ANSWER == final.output_text
    assert client.responses.retrieve(final.id).output_text == ANSWER


def test_the_async_client():
    async def run(url):
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
            client.responses.stream(model=MODEL, input="Hi") as stream,
        ):
            async for _ in stream:
                pass
            return await stream.get_final_response()

    with served(app_of(says(ANSWER))) as url:
        assert asyncio.run(run(url)).output_text == ANSWER


def test_what_is_sampled_with(client, engine):
    client.responses.create(
        model=MODEL,
        input="Hi",
        max_output_tokens=50,
        temperature=0.3,
        top_p=0.5,
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        extra_body={
            "top_k": 7,
            "min_p": 0.1,
            "seed": 5,
            "stop": ["zzz"],
            "logit_bias": {"3": 1.5},
            "presence_penalty": 0.5,
            "frequency_penalty": 0.25,
            "repetition_penalty": 1.1,
            "priority": 4,
            "cache_salt": "pepper",
        },
    )
    request = engine.requests[-1]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (50, 0.3, 0.5)
    assert (sampling.top_k, sampling.min_p, sampling.seed) == (7, 0.1, 5)
    assert sampling.logit_bias == ((3, 1.5),)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, 0.25)
    assert sampling.repetition_penalty == 1.1
    assert (request.priority, request.cache_salt) == (4, "pepper")


def test_stop_and_length(client):
    answer = client.responses.create(model=MODEL, input="Hi", extra_body={"stop": "👍🏽"})
    assert answer.output_text == "Hello there, naïve "
    assert answer.status == "completed"
    for stream in (False, True):
        cut = client.responses.create(model=MODEL, input="Hi", max_output_tokens=2, stream=stream)
        if stream:
            events = list(cut)
            assert events[-1].type == "response.incomplete"
            check_stream([event.to_dict() for event in events])
            cut = events[-1].response
        assert cut.status == "incomplete"
        assert cut.incomplete_details.reason == "max_output_tokens"
        assert cut.output[0].status == "incomplete"
        assert cut.output_text and ANSWER.startswith(cut.output_text)
        assert cut.completed_at is None


def test_logprobs(client):
    include = ["message.output_text.logprobs"]
    whole = client.responses.create(model=MODEL, input="Hi", include=include, top_logprobs=2)
    found = whole.output[0].content[0].logprobs
    assert bytes(b for entry in found for b in entry.bytes).decode() == ANSWER
    assert all(len(entry.top_logprobs) == 2 for entry in found)
    stream = client.responses.create(
        model=MODEL, input="Hi", include=include, top_logprobs=2, stream=True
    )
    final = check_stream([event.to_dict() for event in stream])
    assert final["output"][0]["content"][0]["logprobs"] == [entry.to_dict() for entry in found]
    with pytest.raises(openai.BadRequestError, match="include"):
        client.responses.create(model=MODEL, input="Hi", top_logprobs=2)


def test_instructions_and_earlier_responses(client, engine):
    first = client.responses.create(model=MODEL, input="My name is Ana.", instructions="Be brief.")
    assert "Be brief." in prompt(engine)
    second = client.responses.create(
        model=MODEL, input="Who am I?", previous_response_id=first.id, instructions="Be kind."
    )
    seen = prompt(engine)
    assert "Be brief." not in seen and "Be kind." in seen  # only the input is carried over
    assert seen.index("My name is Ana.") < seen.index(ANSWER) < seen.index("Who am I?")
    third = client.responses.create(model=MODEL, input="x", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    assert prompt(engine).count(ANSWER) == 2
    client.responses.delete(second.id)
    client.responses.create(model=MODEL, input="y", previous_response_id=third.id)
    assert prompt(engine).count("Who am I?") == 1  # what went before stays part of it
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="x", previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def test_references_to_stored_items(client, engine):
    first = client.responses.create(model=MODEL, input="Remember the word kettle.")
    (given,) = client.responses.input_items.list(first.id).data
    client.responses.create(
        model=MODEL,
        input=[
            {"type": "item_reference", "id": given.id},
            {"type": "item_reference", "id": first.output[0].id},
            {"role": "user", "content": "Which word?"},
        ],
    )
    seen = prompt(engine)
    assert seen.index("kettle") < seen.index(ANSWER) < seen.index("Which word?")


def test_retrieve_and_delete(client):
    made = client.responses.create(model=MODEL, input="Hi")
    assert client.responses.retrieve(made.id) == made
    client.responses.delete(made.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    unstored = client.responses.create(model=MODEL, input="Hi", store=False)
    assert unstored.output_text == ANSWER
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_replay_is_the_stream_again(client, streamed):
    made = client.responses.create(model=MODEL, input="Hi", stream=streamed)
    events = [event.to_dict() for event in made] if streamed else []
    made_id = events[0]["response"]["id"] if streamed else made.id
    replay = [event.to_dict() for event in client.responses.retrieve(made_id, stream=True)]
    check_stream(replay)
    assert replay == (events or replay)
    for after in (0, 3, len(replay) - 1, 10_000):
        rest = client.responses.retrieve(made_id, stream=True, starting_after=after)
        assert [event.to_dict() for event in rest] == replay[after + 1 :]


def test_input_items_in_pages(client):
    given = [{"role": "user", "content": f"part {n}"} for n in range(5)]
    made = client.responses.create(model=MODEL, input=given)
    newest_first = list(client.responses.input_items.list(made.id, limit=2))  # pages by itself
    assert [item.content[0].text for item in newest_first] == [f"part {n}" for n in (4, 3, 2, 1, 0)]
    oldest = client.responses.input_items.list(made.id, limit=2, order="asc")
    assert [item.content[0].text for item in oldest.data] == ["part 0", "part 1"]
    assert oldest.has_more
    after = client.responses.input_items.list(made.id, after=oldest.data[1].id, order="asc")
    assert [item.content[0].text for item in after.data] == ["part 2", "part 3", "part 4"]
    assert not after.has_more
    with pytest.raises(openai.BadRequestError):
        client.responses.input_items.list(made.id, limit=0)


def test_input_tokens(client, engine):
    first = client.responses.create(model=MODEL, input="Hi there", instructions="Be brief.")
    counted = client.responses.input_tokens.count(
        model=MODEL, input="Hi there", instructions="Be brief."
    )
    assert counted.input_tokens == first.usage.input_tokens
    second = client.responses.input_tokens.count(
        model=MODEL, input="And?", previous_response_id=first.id, tools=TOOLS
    )
    made = client.responses.create(
        model=MODEL, input="And?", previous_response_id=first.id, tools=TOOLS
    )
    assert (
        second.input_tokens == made.usage.input_tokens == len(engine.requests[-1].prompt_token_ids)
    )


def test_function_calls_and_their_outputs():
    engine = says(CALLS)
    with sdk(engine) as client:
        made = client.responses.create(model=MODEL, input="Weather?", tools=TOOLS)
        message, weather, clock = made.output
        assert message.content[0].text == "Let me see."
        assert (weather.name, json.loads(weather.arguments)) == ("get_weather", {"city": "Zürich"})
        assert (clock.name, clock.arguments) == ("get_time", "{}")
        assert weather.call_id != clock.call_id
        assert made.tools[0].name == "get_weather"
        assert made.parallel_tool_calls
        outputs = [
            {"type": "function_call_output", "call_id": weather.call_id, "output": "4 °C"},
            {"type": "function_call_output", "call_id": clock.call_id, "output": "noon"},
        ]
        client.responses.create(
            model=MODEL, input=outputs, previous_response_id=made.id, tools=TOOLS
        )
        by_reference = prompt(engine)
        history = [{"role": "user", "content": "Weather?"}, *made.output, *outputs]
        client.responses.create(model=MODEL, input=history, tools=TOOLS)
        assert prompt(engine) == by_reference
        assert '"name": "get_weather"' in by_reference and "4 °C" in by_reference


def test_streamed_function_calls():
    with sdk(says(CALLS)) as client:
        stream = client.responses.create(model=MODEL, input="x", tools=TOOLS, stream=True)
        final = check_stream([event.to_dict() for event in stream])
        whole = client.responses.create(model=MODEL, input="x", tools=TOOLS)
        hidden = {"id", "call_id"}
        shown = [{k: v for k, v in item.items() if k not in hidden} for item in final["output"]]
        assert shown == [
            {k: v for k, v in item.to_dict().items() if k not in hidden} for item in whole.output
        ]
        with client.responses.stream(model=MODEL, input="x", tools=TOOLS) as helper:
            done = [e for e in helper if e.type == "response.function_call_arguments.done"]
        assert [json.loads(event.arguments) for event in done] == [{"city": "Zürich"}, {}]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2),
        ({"parallel_tool_calls": False}, 1),
        ({"max_tool_calls": 1}, 1),
        ({"tool_choice": "none"}, 0),
    ],
)
def test_how_many_calls_there_may_be(options, count):
    with sdk(says(CALLS)) as client:
        made = client.responses.create(model=MODEL, input="x", tools=TOOLS, **options)
    assert [item.type for item in made.output].count("function_call") == count


ALLOWED = {
    "type": "allowed_tools",
    "mode": "auto",
    "tools": [{"type": "function", "name": "get_time"}],
}


@pytest.mark.parametrize(
    ("choice", "may_be_called", "begins"),
    [
        ("required", ["get_weather", "get_time"], True),
        ({"type": "function", "name": "get_time"}, ["get_time"], True),
        ({**ALLOWED, "mode": "required"}, ["get_time"], True),
        (ALLOWED, ["get_time"], False),
        ("auto", ["get_weather", "get_time"], False),
    ],
)
def test_the_choice_is_enforced(choice, may_be_called, begins):
    engine = says(CALLS)
    with sdk(engine) as client:
        made = client.responses.create(model=MODEL, input="x", tools=TOOLS, tool_choice=choice)
    assert made.model_dump()["tool_choice"] == choice
    assert "get_time" in prompt(engine) and "get_weather" in prompt(engine)
    constraint = engine.requests[-1].sampling.constraint
    assert constraint.kind == "structural_tag"
    spelled = [tool["name"] for tool in TOOLS if tool["name"] in constraint.text]
    assert spelled == may_be_called
    assert ("triggered_tags" in constraint.text) != begins


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_loose_tools_leave_the_model_free(choice):
    engine = says("Hm.")
    loose = [{**tool, "strict": False} for tool in TOOLS]
    with sdk(engine) as client:
        made = client.responses.create(model=MODEL, input="x", tools=loose, tool_choice=choice)
    assert engine.requests[-1].sampling.constraint is None
    assert made.output_text == "Hm."


def thinking_app(engine):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.reasoning }}|{{ m.content }}{% endfor %}"
        "{# <think></think> #}"
    )
    text = TextModel(byte_level(), templates={"default": template})
    return create_app(engine, lambda model: text, Metrics(model_name=MODEL), ApiSettings())


def test_reasoning_is_an_item_of_its_own():
    thought, said = "Two and two, let me see 👍🏽.", "Four."
    engine = says(f"<think>\n{thought}\n</think>\n\n{said}")
    with connected(thinking_app(engine)) as client:
        whole = client.responses.create(model=MODEL, input="2+2?")
        reasoning, message = whole.output
        assert reasoning.content[0].text == thought
        assert message.content[0].text == said == whole.output_text
        counted = whole.usage.output_tokens_details.reasoning_tokens
        assert len(tokens(thought)) <= counted < whole.usage.output_tokens
        stream = client.responses.create(model=MODEL, input="2+2?", stream=True)
        events = [event.to_dict() for event in stream]
        final = check_stream(events)
        assert len([e for e in events if e["type"] == "response.reasoning_text.delta"]) > 3
        assert final["usage"]["output_tokens_details"]["reasoning_tokens"] == counted
        assert [item["content"][0]["text"] for item in final["output"]] == [thought, said]
        client.responses.create(model=MODEL, input="And?", previous_response_id=whole.id)
        assert f"[assistant]{thought}|{said}" in prompt(engine)


def test_parse_asks_for_the_schema():
    class Person(pydantic.BaseModel):
        name: str
        age: int

    engine = says('{"name": "Ana", "age": 31}')
    with sdk(engine) as client:
        made = client.responses.parse(model=MODEL, input="Who?", text_format=Person)
        assert made.output_parsed == Person(name="Ana", age=31)
        constraint = engine.requests[-1].sampling.constraint
        assert constraint.kind == "json_schema"
        assert json.loads(constraint.text)["required"] == ["name", "age"]
        assert made.text.format.type == "json_schema" and made.text.format.strict
        client.responses.create(
            model=MODEL, input="x", text={"format": {"type": "json_object"}, "verbosity": "low"}
        )
        assert engine.requests[-1].sampling.constraint == Constraint(
            "json_object", "", "text.format"
        )
        client.responses.create(model=MODEL, input="x", text={"format": {"type": "text"}})
        assert engine.requests[-1].sampling.constraint is None


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"structured_outputs": {"regex": "[a-z]+"}}, ("regex", "[a-z]+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, ("choice", '["a", "b"]')),
        ({"guided_regex": "[0-9]"}, ("regex", "[0-9]")),
    ],
)
def test_vllms_structured_outputs(extra, expected):
    engine = says("a")
    with sdk(engine) as client:
        client.responses.create(model=MODEL, input="x", extra_body=extra)
        constraint = engine.requests[-1].sampling.constraint
        assert (constraint.kind, constraint.text) == expected
        with pytest.raises(openai.BadRequestError, match=r"text\.format") as caught:
            client.responses.create(
                model=MODEL, input="x", text={"format": {"type": "json_object"}}, extra_body=extra
            )
        assert str(caught.value.param).startswith(next(iter(extra)))


def test_an_answer_without_words_is_an_empty_message():
    with sdk(ScriptedEngine(Script(()), model=MODEL)) as client:
        made = client.responses.create(model=MODEL, input="x", stream=True)
        final = check_stream([event.to_dict() for event in made])
    assert final["status"] == "completed"
    assert [part["text"] for part in final["output"][0]["content"]] == [""]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Overloaded("queue full"), openai.RateLimitError),
        (Unavailable("draining"), openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_before_the_first_token_have_a_status(error, expected, stream):
    with sdk(ScriptedEngine(Script(error=error), model=MODEL)) as client:
        with pytest.raises(expected) as caught:
            client.responses.create(model=MODEL, input="x", stream=stream)
        assert caught.value.response.headers["retry-after"] == "1"


def test_a_failure_in_mid_stream_is_the_last_event():
    engine = ScriptedEngine(Script(tokens("Hello"), error=Unavailable("gone")), model=MODEL)
    with sdk(engine) as client:
        events = list(client.responses.create(model=MODEL, input="x", stream=True))
        final = check_stream([event.to_dict() for event in events])
        assert events[-1].type == "response.failed"
        assert final["status"] == "failed"
        assert final["error"] == {"code": "server_error", "message": "gone"}
        assert final["output"][0]["status"] == "incomplete"
        assert client.responses.retrieve(final["id"]).status == "failed"
        with pytest.raises(openai.InternalServerError, match="gone"):
            client.responses.create(model=MODEL, input="x")


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "file_search"),
        ({"tools": [{"type": "computer_use_preview"}]}, "computer_use_preview"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "mcp"),
        ({"tools": [{"type": "code_interpreter"}]}, "code_interpreter"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "name"),
        ({"tool_choice": {"type": "file_search"}}, "file_search"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "h"}}, "tool_choice"),
        ({"include": ["everything"]}, "everything"),
        ({"background": True, "store": False}, "store"),
        ({"max_tokens": 5}, "max_output_tokens"),
        ({"messages": []}, "input"),
        ({"response_format": {"type": "json_object"}}, "text.format"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"truncation": "some"}, "truncation"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"input": []}, "input"),
        ({"input": [{"type": "image_generation_call", "id": "x"}]}, "image_generation_call"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"instructions": 5}, "instructions"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, body, names):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", body={"input": "x", **body}, cast_to=object)
    assert names in caught.value.message


def test_truncation_drops_the_oldest_turns():
    turns = [
        {"role": role, "content": f"{role} {n}: " + "word " * 60}
        for n in range(8)
        for role in ("user", "assistant")
    ]
    asked = [*turns, {"role": "user", "content": "And now?"}]
    limited = ScriptedEngine(Script(tokens("ok")), model=MODEL, max_model_len=1000)
    with sdk(limited) as client:
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            client.responses.create(model=MODEL, input=asked)
        client.responses.create(
            model=MODEL,
            input=asked,
            truncation="auto",
            max_output_tokens=100,
            instructions="Be brief.",
        )
        sent = limited.requests[-1]
        seen = prompt(limited)
        assert len(sent.prompt_token_ids) <= 900
        assert "Be brief." in seen and "And now?" in seen and "user 0" not in seen
        first_kept = int(seen.partition("user ")[2][0])
        one_more = [{"role": "system", "content": "Be brief."}, *asked[2 * (first_kept - 1) :]]
        counted = client.responses.input_tokens.count(model=MODEL, input=one_more)
        assert counted.input_tokens > 900  # no more was dropped than had to be
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            client.responses.create(model=MODEL, input="word " * 2000, truncation="auto")


def test_reasoning_effort_and_verbosity_reach_the_template():
    template = "effort={{ reasoning_effort }} verbosity={{ verbosity }} {{ flag }}"
    text = TextModel(byte_level(), templates={"default": template})
    engine = says("ok")
    app = create_app(engine, lambda model: text, Metrics(model_name=MODEL), ApiSettings())
    with connected(app) as client:
        made = client.responses.create(
            model=MODEL,
            input="x",
            reasoning={"effort": "low"},
            text={"verbosity": "high"},
            extra_body={"chat_template_kwargs": {"flag": "on"}},
        )
    assert prompt(engine) == "effort=low verbosity=high on"
    shown = made.model_dump()
    assert shown["reasoning"]["effort"] == "low" and shown["text"]["verbosity"] == "high"
