"""The official SDK, unmodified, with the bundled model."""

import openai
import pytest

from tests.clients.conftest import KEY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def client(url, http):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, http_client=http) as made:
        yield made


def ask(client, question, **options):
    return client.chat.completions.create(
        model="xpyd-demo",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=40,
        **options,
    )


def test_chat_answers_sensibly(client):
    answer = ask(client, "What is the capital of France?")
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_joins_to_the_whole_answer(client):
    whole = ask(client, "Who wrote Hamlet?").choices[0].message.content
    pieces = []
    usage = None
    stream = ask(client, "Who wrote Hamlet?", stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        if chunk.choices:
            pieces.append(chunk.choices[0].delta.content or "")
        usage = chunk.usage or usage
    assert "".join(pieces) == whole
    assert "Shakespeare" in whole
    assert usage is not None
    assert usage.completion_tokens > 0


def test_a_second_turn_knows_the_first(client):
    messages = [
        {"role": "user", "content": "My name is Ana."},
        {"role": "assistant", "content": "Nice to meet you, Ana!"},
        {"role": "user", "content": "What is my name?"},
    ]
    answer = client.chat.completions.create(
        model="xpyd-demo", messages=messages, temperature=0, max_tokens=20
    )
    assert "Ana" in answer.choices[0].message.content


def test_completions_with_n_logprobs_and_echo(client):
    answer = client.completions.create(
        model="xpyd-demo",
        prompt="The capital of France is",
        max_tokens=4,
        n=2,
        seed=5,
        logprobs=2,
        echo=True,
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.text.startswith("The capital of France is")
        assert choice.logprobs.token_logprobs[0] is None
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)


def test_seeds_repeat_and_differ(client):
    def draw(seed):
        return (
            client.completions.create(
                model="xpyd-demo", prompt="Once", max_tokens=24, temperature=1.5, seed=seed
            )
            .choices[0]
            .text
        )

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_models_are_listed_and_retrieved(client):
    assert [model.id for model in client.models.list()] == ["xpyd-demo"]
    assert client.models.retrieve("xpyd-demo").id == "xpyd-demo"


def test_errors_are_the_sdks_own(client, url):
    with pytest.raises(openai.NotFoundError, match="xpyd-demo|does not exist"):
        client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="xpyd-demo", prompt="x " * 5000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="xpyd-demo", prompt="x", temperature=3)
    assert caught.value.param == "temperature"
    wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_the_wrong_field_is_refused_not_ignored(client):
    with pytest.raises(openai.BadRequestError):
        ask(client, "x", extra_body={"kv_transfer_params": {"do_remote_decode": True}})
