"""The official openai SDK over a real server: what its users call must work unmodified."""

import contextlib

import openai
import pytest

from common.api.scripted import Script, ScriptedEngine
from common.errors import Overloaded, Unavailable
from tests.common.api.apps import MODEL, USER, app_of, says, served, tokens

ANSWER = "Hello there, naïve 👍🏽 world! 日本語"


@contextlib.contextmanager
def sdk(engine, key="unused", **settings):
    with (
        served(app_of(engine, **settings)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client():
    with sdk(says(ANSWER, num_cached_tokens=3)) as made:
        yield made


def test_chat(client):
    answer = client.chat.completions.create(model=MODEL, messages=USER)
    choice = answer.choices[0]
    assert choice.message.content == ANSWER
    assert choice.message.role == "assistant"
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage.completion_tokens == len(tokens(ANSWER))
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer._request_id


def test_chat_stream(client):
    stream = client.chat.completions.create(model=MODEL, messages=USER, stream=True)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == ANSWER
    assert [c.choices[0].finish_reason for c in chunks][-1] == "stop"
    assert len({c.id for c in chunks}) == 1


def test_the_stream_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=USER) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == ANSWER


def test_stream_with_usage(client):
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(tokens(ANSWER))
    assert all(c.usage is None for c in chunks[:-1])


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert bytes(b for entry in content for b in entry.bytes).decode() == ANSWER
    assert all(len(entry.top_logprobs) == 2 for entry in content)


def test_completions(client):
    answer = client.completions.create(model=MODEL, prompt="def f(n):", max_tokens=64)
    assert answer.choices[0].text == ANSWER
    stream = client.completions.create(model=MODEL, prompt="x", max_tokens=64, stream=True)
    assert "".join(c.choices[0].text for c in stream) == ANSWER


def test_completions_logprobs(client):
    answer = client.completions.create(model=MODEL, prompt="Hi", logprobs=2, max_tokens=64)
    found = answer.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset)
    assert len(found.tokens) == len(tokens(ANSWER))


def test_several_prompts_and_choices(client):
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=1)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.completion_tokens == 4


def test_stop(client):
    answer = client.chat.completions.create(model=MODEL, messages=USER, stop=["👍🏽 w", "zzz"])
    assert answer.choices[0].message.content == "Hello there, naïve "
    assert answer.choices[0].finish_reason == "stop"


def test_length(client):
    answer = client.chat.completions.create(model=MODEL, messages=USER, max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


def test_models(client):
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL  # the SDK sends org%2Fscripted
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


def test_tools():
    text = 'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n'
    text += "</tool_call>"
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    with sdk(says(text)) as client:
        answer = client.chat.completions.create(model=MODEL, messages=USER, tools=tools)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        assert choice.message.tool_calls[0].function.name == "get_weather"
        assert choice.message.tool_calls[0].function.arguments == '{"city": "Zürich"}'
        with client.chat.completions.stream(model=MODEL, messages=USER, tools=tools) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion().choices[0].message
        assert streamed.tool_calls[0].function.arguments == '{"city": "Zürich"}'
        assert streamed.content == "Let me see."
        history = [
            *USER,
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "4 °C"},
        ]
        client.chat.completions.create(model=MODEL, messages=history, tools=tools)


def test_bad_request(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=USER, temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=USER)
    with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        client.chat.completions.create(model=MODEL, messages=USER, max_tokens=5000)
    assert caught.value.code == "context_length_exceeded"


def test_keys():
    with sdk(says("x"), key="right", api_keys=("other", "right")) as client:
        assert client.models.list().data
        with pytest.raises(openai.AuthenticationError) as caught:
            client.with_options(api_key="wrong").models.list()
        assert caught.value.code == "invalid_api_key"


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
            client.chat.completions.create(model=MODEL, messages=USER, stream=stream)
        assert caught.value.response.headers["retry-after"] == "1"


def test_an_error_in_mid_stream_is_one_event():
    engine = ScriptedEngine(Script(tokens("Hello"), error=Unavailable("gone")), model=MODEL)
    with sdk(engine) as client:
        stream = client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        text = ""
        with pytest.raises(openai.APIError, match="gone"):
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert text == "Hello"
