"""/openapi.json is true: any call made from it gets a documented status, type and form."""

import asyncio
import json
from functools import cache

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.common.api.apps import MODEL, USER, InProcess, app_of, says

jsonschema = pytest.importorskip("jsonschema")

ENGINE = says("Hello 👍 world")
APP = app_of(ENGINE, show_tokenizer=True, max_body_bytes=1 << 16)
DOCUMENT = InProcess(ENGINE, show_tokenizer=True).get("/openapi.json").json()
OPERATIONS = [
    (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
NAMES = [f"{method} {path}" for method, path, _ in OPERATIONS]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 1 << 33) | st.floats(-3, 3) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
# What schemas do not say: fields that the rest of a body hangs on.
GOOD = {
    "messages": st.just(USER),
    "prompt": st.sampled_from(["Hi", [1, 2], ["a", "b"], [[3]]]),
    "input": st.just("Hi"),
    "model": st.sampled_from([MODEL, MODEL, MODEL, "other"]),
    "max_tokens": st.integers(1, 20),
    "max_output_tokens": st.integers(1, 20),
    "background": st.just(False),
}


def values(schema):
    """Values that fit a schema, as far as generators of ours go."""
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return st.one_of([values(each) for each in schema[choice]])
    kind = schema.get("type")
    if kind == "object":
        return objects(schema)
    if kind == "array":
        low = schema.get("minItems", 0)
        return st.lists(values(schema.get("items", {})), min_size=low, max_size=low + 2)
    if kind == "integer":
        low = schema.get("minimum", -(1 << 40))
        return st.integers(low, min(schema.get("maximum", 1 << 40), low + (1 << 41)))
    if kind == "number":
        return st.floats(schema.get("minimum", -9), schema.get("maximum", 9))
    if kind == "string":
        low = schema.get("minLength", 0)
        return st.text(min_size=low, max_size=min(low + 6, schema.get("maxLength", 99)))
    return {"boolean": st.booleans(), "null": st.none()}.get(kind, JSON)


def objects(schema):
    """With all that is required and a handful more: most of them are good requests."""
    needed = set(schema.get("required", ()))
    fields = {
        name: GOOD[name] if name in GOOD else values(each)
        for name, each in schema.get("properties", {}).items()
    }
    others = sorted(set(fields) - needed)
    chosen = st.sets(st.sampled_from(others), max_size=4) if others else st.just(set())
    return chosen.flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in needed | names})
    )


@cache
def bodies(name):
    operation = OPERATIONS[NAMES.index(name)][2]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    good = st.one_of([values(each) for each in schema.get("anyOf", [schema])])
    spoiled = st.tuples(good, st.dictionaries(st.sampled_from(list(GOOD)), JSON, max_size=2)).map(
        lambda parts: {**parts[0], **parts[1]}
    )
    return good | spoiled


def call(method, path, **options):
    async def run():
        transport = httpx.ASGITransport(APP)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", trust_env=False
        ) as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def check(response, operation):
    told = operation["responses"]
    assert str(response.status_code) in told, (response.status_code, response.text)
    assert response.status_code in (504, *range(500)), (
        response.text
    )  # 504: it asked for little time
    content = told[str(response.status_code)].get("content", {})
    if not content:
        assert response.content == b""
        return
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in content
    if kind == "application/json":
        jsonschema.validate(json.loads(response.content), content[kind]["schema"])
    assert not ENGINE.running


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_any_call_gets_what_is_documented(name, data):
    method, path, operation = OPERATIONS[NAMES.index(name)]
    queries = {}
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            names = [MODEL, stored_response(), "x", "a b", "%2F", "日", "..;"]
            given_name = data.draw(st.sampled_from(names))
            path = path.replace("{" + parameter["name"] + "}", given_name)
        elif data.draw(st.booleans()):
            fits = values(parameter["schema"]) | st.integers(0, 30)
            queries[parameter["name"]] = str(data.draw(fits | st.text(max_size=4)))
    assert "{" not in path, "a part of the path is not described"
    options = {"json": data.draw(bodies(name))} if "requestBody" in operation else {}
    check(call(method.upper(), path, params=queries, **options), operation)
    assert call("GET", "/health").status_code == 200


def stored_response():
    """A new one each time: the call may delete it."""
    made = call("POST", "/v1/responses", json={"input": "Hi"}).json()["id"]
    assert isinstance(made, str)
    return made


def test_queries_of_get_are_described():
    found = {}
    for method, path, operation in OPERATIONS:
        names = {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"}
        if names:
            found[f"{method} {path}"] = names
    assert found == {
        "get /v1/responses/{response_id}": {"stream", "starting_after"},
        "get /v1/responses/{response_id}/input_items": {"limit", "order", "after", "before"},
    }
    made = stored_response()
    for rest, queries in (("", {"stream": "true"}), ("", {}), ("/input_items", {"limit": "1"})):
        response = call("GET", f"/v1/responses/{made}{rest}", params=queries)
        assert response.status_code == 200
        check(response, DOCUMENT["paths"]["/v1/responses/{response_id}" + rest]["get"])


def test_a_good_call_of_each_is_answered():
    """The generators above do reach the answers, not only the refusals."""
    found: dict[str, dict[str, object]] = {
        "/v1/chat/completions": {"messages": USER},
        "/v1/completions": {"prompt": "Hi"},
        "/invocations": {"prompt": "Hi"},
        "/v1/messages": {"messages": USER, "max_tokens": 9},
        "/v1/messages/count_tokens": {"messages": USER},
        "/v1/responses": {"input": "Hi"},
        "/v1/responses/input_tokens": {"input": "Hi"},
        "/tokenize": {"prompt": "Hi"},
        "/detokenize": {"tokens": [1]},
        "/inference/v1/generate": {"token_ids": [1]},
        "/inference/v1/abort_requests": {"request_ids": []},
    }
    for path, body in found.items():
        response = call("POST", path, json=body)
        assert response.status_code == 200, response.text
        check(response, DOCUMENT["paths"][path]["post"])
        if "text/event-stream" in str(DOCUMENT["paths"][path]["post"]["responses"]["200"]):
            streamed = call("POST", path, json={**body, "stream": True})
            check(streamed, DOCUMENT["paths"][path]["post"])
            assert streamed.headers["content-type"].startswith("text/event-stream")


def test_operations_have_names_of_their_own():
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


def test_every_answer_is_described():
    for name, (_, _, operation) in zip(NAMES, OPERATIONS, strict=True):
        content = operation["responses"]["200"].get("content", {})
        if "application/json" in content:
            schema = content["application/json"]["schema"]
            assert all(each.get("properties") for each in schema.get("anyOf", [schema])), name
