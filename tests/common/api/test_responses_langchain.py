"""langchain-openai on /v1/responses: what its users call must work unmodified."""

import contextlib

import pydantic
import pytest

from tests.common.api.apps import MODEL, app_of, says, served, text_model

langchain_openai = pytest.importorskip("langchain_openai")
messages = pytest.importorskip("langchain_core.messages")

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'


@contextlib.contextmanager
def chat_model(engine, **options):
    with served(app_of(engine)) as url:
        yield langchain_openai.ChatOpenAI(
            base_url=f"{url}/v1",
            api_key="unused",
            model=MODEL,
            max_retries=0,
            use_responses_api=True,
            **options,
        )


def get_weather(city: str) -> str:
    """The weather in a city."""
    return city


def test_invoke_and_stream_say_the_same():
    with chat_model(says("Hello there")) as model:
        whole = model.invoke("Hi")
        assert whole.text == "Hello there"
        assert whole.usage_metadata["output_tokens"] == 3
        assert "".join(chunk.text for chunk in model.stream("Hi")) == "Hello there"


def test_a_conversation_goes_on_by_id():
    engine = says("Hello there")
    with chat_model(engine, use_previous_response_id=True) as model:
        first = model.invoke("My name is Ana.")
        model.invoke(
            [
                messages.HumanMessage("My name is Ana."),
                first,
                messages.HumanMessage("And mine?"),
            ]
        )
    seen = text_model().decode(engine.requests[-1].prompt_token_ids)
    assert [seen.count(text) for text in ("Ana", "Hello there", "And mine?")] == [1, 1, 1]


def test_tools():
    with chat_model(says(CALL)) as plain:
        model = plain.bind_tools([get_weather])
        answer = model.invoke("Weather?")
        (call,) = answer.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Zürich"})
        chunks = list(model.stream("Weather?"))
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        assert [made["args"] for made in total.tool_calls] == [call["args"]]
        result = messages.ToolMessage("4 °C", tool_call_id=call["id"])
        assert model.invoke([messages.HumanMessage("Weather?"), answer, result]).tool_calls


def test_structured_output():
    class Person(pydantic.BaseModel):
        name: str

    engine = says('{"name": "Ana"}')
    with chat_model(engine) as model:
        assert model.with_structured_output(Person).invoke("Who?") == Person(name="Ana")
    assert engine.requests[-1].sampling.constraint.kind == "json_schema"
