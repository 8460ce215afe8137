"""The official anthropic SDK over a real server: what its users call must work unmodified."""

import anthropic
import httpx
import pytest

from common.api.scripted import Script, ScriptedEngine
from common.errors import BadRequest, DeadlineExceeded, InstanceLost, Overloaded, Unavailable
from tests.common.api.anthropic_client import TOOLS, USER, sdk
from tests.common.api.apps import MODEL, app_of, says, served, tokens, wait_for

ANSWER = "Hello there, naïve 👍🏽 world! 日本語"
CALL = """<tool_call>
{"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2]}}
</tool_call>"""


@pytest.fixture(scope="module")
def client():
    with sdk(says(ANSWER, num_cached_tokens=3)) as made:
        yield made


def ask(client, **options):
    return client.messages.create(**{"model": MODEL, "max_tokens": 64, "messages": USER, **options})


def kind_of(caught):
    return caught.value.body["error"]["type"]


def test_create(client):
    message = ask(client, system="Be brief.", metadata={"user_id": "u"})
    assert [(b.type, b.text) for b in message.content] == [("text", ANSWER)]
    assert message.role == "assistant" and message.type == "message" and message.model == MODEL
    assert message.id.startswith("msg_")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == len(tokens(ANSWER))
    assert message.usage.cache_read_input_tokens == 3
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    prompt += "<|im_start|>assistant\n"
    assert message.usage.input_tokens + 3 == len(tokens(prompt))
    assert message._request_id


def test_stream(client):
    with client.messages.stream(model=MODEL, max_tokens=64, messages=USER) as stream:
        assert "".join(stream.text_stream) == ANSWER
        final = stream.get_final_message()
    whole = ask(client)
    assert final.content[0].text == ANSWER
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens == whole.usage.input_tokens
    assert final.usage.cache_read_input_tokens == 3


def test_the_events_and_their_order(client):
    events = list(ask(client, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert events[0].message.content == [] and events[0].message.stop_reason is None
    assert events[-2].delta.stop_reason == "end_turn"


def test_stop_sequences(client):
    message = ask(client, stop_sequences=["zzz", " 👍🏽", "!", "?", ";", "%"])
    assert message.content[0].text == "Hello there, naïve"
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " 👍🏽")
    with client.messages.stream(
        model=MODEL, max_tokens=64, messages=USER, stop_sequences=[" 👍🏽"]
    ) as stream:
        assert "".join(stream.text_stream) == "Hello there, naïve"
        assert stream.get_final_message().stop_sequence == " 👍🏽"


def test_max_tokens(client):
    message = ask(client, max_tokens=2)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 2


def test_count_tokens(client):
    options = {"system": "Be brief.", "tools": TOOLS}
    counted = client.messages.count_tokens(model=MODEL, messages=USER, **options)
    usage = ask(client, **options).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


@pytest.mark.parametrize("text", ["Let me see.\n", ""])
def test_tools(text):
    engine = says(text + CALL + "\n" + CALL.replace("Zürich", "Bern"))
    with sdk(engine) as client:
        message = ask(client, tools=TOOLS, max_tokens=200)
        assert message.stop_reason == "tool_use"
        *texts, first, second = message.content
        assert [block.text for block in texts] == ([text.strip()] if text else [])
        assert first.name == second.name == "get_weather" and first.id != second.id
        assert first.input == {"city": "Zürich", "days": [1, 2]}
        assert second.input == {"city": "Bern", "days": [1, 2]}
        with client.messages.stream(
            model=MODEL, max_tokens=200, messages=USER, tools=TOOLS
        ) as stream:
            final = stream.get_final_message()
        streamed = [b.model_dump(exclude={"id", "parsed_output"}) for b in final.content]
        whole = [b.model_dump(exclude={"id"}) for b in message.content]
        assert streamed == whole
        assert final.stop_reason == "tool_use"
        one = ask(
            client,
            tools=TOOLS,
            max_tokens=200,
            tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        )
        assert [b.type for b in one.content if b.type != "text"] == ["tool_use"]
        history = [
            *USER,
            {"role": "assistant", "content": message.model_dump(exclude_none=True)["content"]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": first.id, "content": "4 °C"},
                    {"type": "text", "text": "Thanks."},
                ],
            },
        ]
        assert ask(client, messages=history, tools=TOOLS, max_tokens=200).content


def test_bearer_keys_and_x_api_keys():
    with sdk(says("x"), key="right", api_keys=("right",)) as client:
        assert ask(client).content[0].text == "x"
        bearer = anthropic.Anthropic(
            base_url=str(client.base_url), api_key=None, auth_token="right", max_retries=0
        )
        with bearer:
            assert ask(bearer).content[0].text == "x"
        with pytest.raises(anthropic.AuthenticationError):
            ask(client.with_options(api_key="wrong"))


def test_errors_are_the_sdks_own(client):
    with pytest.raises(anthropic.NotFoundError) as caught:
        ask(client, model="other")
    assert kind_of(caught) == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        ask(client, extra_body={"temperature": 3})
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        ask(client, max_tokens=5000)
    with pytest.raises(anthropic.APIStatusError) as refused:
        ask(client, system="x" * (1 << 20))
    assert refused.value.status_code == 413
    assert kind_of(refused) == "request_too_large"


ERRORS = [
    (BadRequest("no"), anthropic.BadRequestError, "invalid_request_error"),
    (Overloaded("queue full"), anthropic.RateLimitError, "rate_limit_error"),
    (Unavailable("draining"), anthropic._exceptions.OverloadedError, "overloaded_error"),
    (InstanceLost("gone"), anthropic._exceptions.OverloadedError, "overloaded_error"),
    (DeadlineExceeded("late"), anthropic._exceptions.DeadlineExceededError, "timeout_error"),
    (RuntimeError("bug"), anthropic.InternalServerError, "api_error"),
]


@pytest.fixture(scope="module")
def failing():
    """Fails as the number in max_tokens says."""

    def script(request):
        return Script(error=ERRORS[request.sampling.max_tokens - 1][0])

    with sdk(ScriptedEngine(script, model=MODEL)) as made:
        yield made


@pytest.mark.parametrize("number", range(len(ERRORS)))
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_before_the_first_token_have_a_status(failing, number, stream):
    _, expected, kind = ERRORS[number]
    with pytest.raises(expected) as caught:
        ask(failing, stream=stream, max_tokens=number + 1)
    assert kind_of(caught) == kind
    assert "bug" not in caught.value.message


def test_an_error_in_mid_stream_is_the_last_event():
    script = Script(tokens(ANSWER)[:4], error=InstanceLost("the instance died"))
    with sdk(ScriptedEngine(script, model=MODEL)) as client:
        seen = []
        with pytest.raises(anthropic.APIStatusError, match="the instance died") as caught:
            for event in ask(client, stream=True):
                seen.append(event.type)
        assert seen[0] == "message_start" and "message_stop" not in seen
        assert kind_of(caught) == "overloaded_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_its_request(stream):
    engine = says("again " * 300, delay_s=0.01)
    with served(app_of(engine)) as url:
        body = {"model": MODEL, "max_tokens": 500, "messages": USER, "stream": stream}
        with httpx.Client(timeout=60) as client:
            if stream:
                with client.stream("POST", f"{url}/v1/messages", json=body) as response:
                    next(response.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(f"{url}/v1/messages", json=body, timeout=0.2)
        wait_for(lambda: engine.aborted and not engine.running)
