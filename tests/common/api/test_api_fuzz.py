"""Any JSON at all: an answer or a refusal that names what is wrong, never our failure."""

import asyncio
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.api.protocol import ChatRequest, CompletionRequest, GenerateRequest, TokenizeChat
from tests.common.api.apps import USER, app_of, error_of, says

ENGINE = says("Hello 👍 world")
APP = app_of(ENGINE, allow_chat_template=True)

NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([-(1 << 63), 1 << 63, 1 << 31, 10**30, 2**53 + 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, 1e-320, 1e308]),
)
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", "\0", "user", "auto", "{{ x }}", "a"]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
        optional={
            "content": TEXTS | VALUES,
            "name": VALUES,
            "tool_calls": VALUES
            | st.just([{"id": "x", "function": {"name": "f", "arguments": "[1"}}]),
        },
    ),
    max_size=3,
)
PROMPTS = st.one_of(TEXTS, st.lists(TEXTS, max_size=3), st.lists(st.integers(0, 500), max_size=5))


def bodies(model, base):
    """Valid bases with some of the model's fields set to anything."""
    names = st.sampled_from([*model.model_fields, "guided_json", "response_format", "suffix"])
    return st.tuples(base, st.dictionaries(names, VALUES, max_size=4)).map(
        lambda parts: {**parts[0], **parts[1]}
    )


CASES = {
    "/v1/chat/completions": bodies(
        ChatRequest, st.fixed_dictionaries({"messages": MESSAGES | st.just(USER)})
    ),
    "/v1/completions": bodies(CompletionRequest, st.fixed_dictionaries({"prompt": PROMPTS})),
    "/inference/v1/generate": bodies(
        GenerateRequest,
        st.fixed_dictionaries(
            {"token_ids": st.lists(st.integers(0, 450), min_size=1, max_size=4)},
            optional={"sampling_params": VALUES},
        ),
    ),
    "/tokenize": bodies(TokenizeChat, st.fixed_dictionaries({"messages": MESSAGES})),
    "/detokenize": st.fixed_dictionaries(
        {"tokens": st.lists(st.integers(0, 450), max_size=5) | VALUES}
    ),
}


def post(path, content):
    async def run():
        transport = httpx.ASGITransport(APP)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", trust_env=False
        ) as client:
            headers = {"Content-Type": "application/json"}
            return await client.post(path, content=content, headers=headers)

    return asyncio.run(run())


@pytest.mark.parametrize("path", CASES)
@given(data=st.data())
@settings(max_examples=80)
def test_any_fields(path, data):
    check(post(path, json.dumps(data.draw(CASES[path])).encode()))


@pytest.mark.parametrize("path", CASES)
@given(content=st.one_of(st.binary(max_size=40), VALUES.map(lambda v: json.dumps(v).encode())))
@settings(max_examples=30)
def test_any_bytes(path, content):
    check(post(path, content))


def check(response):
    if response.status_code == 200:
        if response.headers["content-type"] == "application/json":
            assert json.loads(response.content)
        else:
            assert response.text.endswith("data: [DONE]\n\n")
            assert '"error"' not in response.text
    else:
        status = 404 if "model_not_found" in response.text else 400
        error = error_of(response, status)
        assert "\n" not in error["message"]
    assert not ENGINE.running
