"""LiteLLM as router and as SDK: by its OpenAI, vLLM and Anthropic providers."""

from __future__ import annotations

import pytest

from tests.clients.conftest import KINDS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROGRAM = """
import litellm
litellm.telemetry = False
litellm.suppress_debug_info = True

openai = dict(model="openai/" + MODEL, api_base=URL + "/v1", api_key=KEY, num_retries=0)
vllm = {**openai, "model": "hosted_vllm/" + MODEL}
claude = dict(model="anthropic/" + MODEL, api_base=URL, api_key=KEY, num_retries=0)
question = [{"role": "user", "content": "What is the capital of France?"}]
sampling = dict(temperature=0, max_tokens=40)

for name, provider in (("openai", openai), ("vllm", vllm), ("claude", claude)):
    answer = litellm.completion(messages=question, **sampling, **provider)
    stream = litellm.completion(messages=question, stream=True, **sampling, **provider)
    results[name] = {
        "content": answer.choices[0].message.content,
        "finish_reason": answer.choices[0].finish_reason,
        "total": answer.usage.total_tokens,
        "sum": answer.usage.prompt_tokens + answer.usage.completion_tokens,
        "streamed": "".join(c.choices[0].delta.content or "" for c in stream),
    }

text = litellm.text_completion(
    model="text-completion-openai/" + MODEL, prompt="The capital of France is",
    api_base=URL + "/v1", api_key=KEY, max_tokens=8, temperature=0)
results["text"] = text.choices[0].text

tools = [{"type": "function", "function": {"name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                   "required": ["city"]}}}]
weather = [{"role": "user", "content": "What is the weather in Paris?"}]
for name, provider in (("openai", openai), ("claude", claude)):
    called = litellm.completion(messages=weather, tools=tools, **sampling, **provider)
    results["calls_" + name] = [[c.function.name, json.loads(c.function.arguments)]
                                for c in called.choices[0].message.tool_calls or []]

def failure(**changes):
    try:
        litellm.completion(**{"messages": question, **openai, **changes})
    except Exception as error:
        return type(error).__name__
    return None

results["too_long"] = failure(messages=[{"role": "user", "content": "x " * 6000}])
results["unknown"] = failure(model="openai/nobody")
results["wrong_key"] = failure(api_key="wrong")
results["bad"] = failure(temperature=9)
"""


@pytest.fixture(scope="module")
def both_results(run_program):
    return run_program("litellm", PROGRAM)


@pytest.fixture(params=KINDS)
def results(request, both_results):
    return both_results[request.param]


@pytest.mark.parametrize("provider", ["openai", "vllm", "claude"])
def test_completion(results, provider):
    found = results[provider]
    assert "Paris" in found["content"]
    assert found["finish_reason"] == "stop"
    assert found["total"] == found["sum"] > 0
    assert found["streamed"] == found["content"]


def test_all_providers_get_the_same_answer(results):
    assert len({results[name]["content"] for name in ("openai", "vllm", "claude")}) == 1


def test_text_completion(results):
    assert "Paris" in results["text"]


@pytest.mark.parametrize("provider", ["openai", "claude"])
def test_tools(results, provider):
    assert results[f"calls_{provider}"] == [["get_weather", {"city": "Paris"}]]


def test_errors_are_told_apart(results):
    assert results["too_long"] == "ContextWindowExceededError"
    assert results["unknown"] == "NotFoundError"
    assert results["wrong_key"] == "AuthenticationError"
    assert results["bad"] == "BadRequestError"
