"""LangChain's OpenAI classes, as their users write them."""

from __future__ import annotations

import pytest

from tests.clients.conftest import KINDS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROGRAM = '''
import asyncio
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

options = dict(model=MODEL, base_url=URL + "/v1", api_key=KEY, temperature=0, max_retries=0)
chat = ChatOpenAI(**options, max_tokens=40)
question = "What is the capital of France?"

answer = chat.invoke([SystemMessage("Be brief."), HumanMessage(question)])
results["content"] = answer.content
results["usage"] = answer.usage_metadata
results["finish_reason"] = answer.response_metadata["finish_reason"]

whole = chat.invoke(question)
chunks = list(chat.stream(question, stream_usage=True))
results["whole"] = whole.content
results["streamed"] = "".join(chunk.content for chunk in chunks)
results["num_chunks"] = len(chunks)
results["stream_usage"] = next(c.usage_metadata for c in chunks if c.usage_metadata)

results["batch"] = [a.content for a in chat.batch([question, "Who wrote Hamlet?"])]
results["async"] = asyncio.run(chat.ainvoke(question)).content
results["logprobs"] = len(
    chat.bind(logprobs=True).invoke(question).response_metadata["logprobs"]["content"]
)
results["completion"] = OpenAI(**options, max_tokens=8).invoke("The capital of France is")

@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return "4 °C in " + city

bound = chat.bind_tools([get_weather])
called = bound.invoke("What is the weather in Paris?")
results["calls"] = [[call["name"], call["args"]] for call in called.tool_calls]
results["invalid_calls"] = len(called.invalid_tool_calls)
history = [HumanMessage("What is the weather in Paris?"), called]
history += [ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
            for call in called.tool_calls]
results["after_tools"] = bound.invoke(history).content

forced = chat.bind_tools([get_weather], tool_choice="get_weather")
results["forced"] = [c["name"] for c in forced.invoke("Weather in Rome?").tool_calls]

class City(BaseModel):
    name: str = Field(max_length=20)
    country: str = Field(max_length=20)

reader = ChatOpenAI(**options, max_tokens=100).with_structured_output(City, method="json_schema")
results["structured"] = reader.invoke("Paris is in France.").model_dump()

try:
    chat.invoke("x " * 6000)
except Exception as error:
    results["too_long"] = [type(error).__name__, str(error)[:400]]
'''


@pytest.fixture(scope="module")
def both_results(run_program):
    return run_program("langchain_openai", PROGRAM)


@pytest.fixture(params=KINDS)
def results(request, both_results):
    return both_results[request.param]


def test_invoke(results):
    assert "Paris" in results["content"]
    assert results["finish_reason"] == "stop"
    usage = results["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


def test_a_stream_is_the_whole_answer(results):
    assert results["streamed"] == results["whole"] != ""
    assert results["num_chunks"] > 3
    assert results["stream_usage"]["output_tokens"] > 0


def test_batch_and_async(results):
    assert results["batch"][0] == results["async"] == results["whole"]
    assert "Shakespeare" in results["batch"][1]


def test_logprobs_and_completions(results):
    assert results["logprobs"] > 0
    assert "Paris" in results["completion"]


def test_tools(results):
    assert results["calls"] == [["get_weather", {"city": "Paris"}]]
    assert results["invalid_calls"] == 0
    assert results["after_tools"]


def test_a_demanded_tool(results):
    assert results["forced"] == ["get_weather"]


def test_structured_output(results):
    assert set(results["structured"]) == {"name", "country"}


def test_a_prompt_that_is_too_long(results):
    kind, text = results["too_long"]
    assert "context_length_exceeded" in text
    assert kind in ("BadRequestError", "OpenAIContextOverflowError")
