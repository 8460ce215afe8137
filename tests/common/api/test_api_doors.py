"""Who may pass and with what: keys, sizes, forms, unknown paths. Always OpenAI's error object."""

import asyncio
import json
import logging
import socket

import httpx
import pytest

from common.api.scripted import Script, ScriptedEngine
from tests.common.api.apps import MODEL, USER, InProcess, app_of, error_of, says, served

KEYED = InProcess(says("x"), api_keys=("right", "other"))
OPEN = InProcess(says("x"))
BEARER = {"Authorization": "Bearer right"}


@pytest.mark.parametrize("path", ["/health", "/ping", "/version"])
def test_probes_need_no_key(path):
    assert KEYED.get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/models", "/v1/models/org/scripted", "/metrics", "/load", "/openapi.json", "/docs"),
        *("//v1/models", "/v1//models", "/%2fhealth", "//health", "/health/"),
        *("/health/../v1/models", "/health%2f..%2fv1/models", "/nowhere", "/health;/v1/models"),
    ],
)
def test_everything_else_needs_one(path):
    error = error_of(KEYED.get(path), 401)
    assert error["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "target",
    ["/v1/../health", "/health/../v1/models", "//v1/models", "/./health", "http://x/v1/models"],
)
def test_odd_spellings_on_the_wire(target):
    """Clients tidy paths up before they send them; an attacker does not."""
    with served(app_of(says("x"), api_keys=("right",))) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as raw:
            raw.sendall(f"GET {target} HTTP/1.1\r\nHost: health\r\n\r\n".encode())
            assert raw.recv(64).startswith(b"HTTP/1.1 401 ")


def test_posts_need_one_before_the_body_is_read():
    read = []

    async def body():
        read.append(1)
        yield b"{}"

    response = KEYED.request("POST", "/v1/chat/completions", content=body())
    error_of(response, 401)
    assert not read
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"Authorization": "bearer other"},
        {"x-api-key": "right"},
        {"x-api-key": "right", "Authorization": "Bearer wrong"},
    ],
)
def test_both_ways_to_send_a_key(headers):
    assert KEYED.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "right"},
        {"Authorization": "Basic right"},
        {"x-api-key": "righ"},
        {"Host": "right"},
        {"Authorization": "Bearer \xff"},
    ],
)
def test_wrong_keys(headers):
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    error_of(KEYED.get("/v1/models", headers=encoded), 401)


def test_a_wrong_key_is_told_in_openais_words():
    """LiteLLM looks for them to tell a wrong key from a bad request."""
    response = KEYED.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    assert "Incorrect API key provided" in error_of(response, 401)["message"]


def test_metrics_may_be_open_and_paths_may_guard_themselves():
    app = InProcess(
        says("x"), api_keys=("k",), open_metrics=True, own_guard_paths=frozenset({"/load"})
    )
    assert app.get("/metrics").status_code == 200
    assert app.get("/load").status_code == 200
    assert app.get("/v1/models").status_code == 401


def test_unknown_paths_and_methods():
    assert error_of(OPEN.get("/v1/nowhere"), 404)["code"] == "not_found"
    response = OPEN.get("/v1/chat/completions")
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b"{", 400),
        (b'{"messages": NaN}', 400),
        (b'{"temperature": Infinity}', 400),
        (b'{"temperature": 1e999}', 400),
        (b'{"x": "\\ud800"}', 400),
        (b'{"x": "\xff"}', 400),
        (b'{"x": ' + b"9" * 6000 + b"}", 400),
        (b'{"x": ' + b"[" * 65 + b"]" * 65 + b"}", 400),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"x": "' + b"y" * (1 << 20) + b'"}', 413),
    ],
)
def test_bodies_that_are_not_taken(content, status):
    headers = {"Content-Type": "application/json"}
    error_of(OPEN.request("POST", "/v1/completions", content=content, headers=headers), status)


def test_a_chunked_body_is_counted_while_it_is_read():
    sent = []

    async def body():
        for _ in range(64):
            sent.append(1)
            yield b" " * (64 << 10)

    headers = {"Content-Type": "application/json"}
    error_of(OPEN.request("POST", "/v1/completions", content=body(), headers=headers), 413)


def test_a_depth_of_64_is_allowed():
    nested = json.loads("[" * 63 + "]" * 63)
    assert OPEN.chat(unknown=nested).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_content_types(headers):
    response = OPEN.request("POST", "/v1/completions", content=b"{}", headers=headers)
    error_of(response, 415)


def test_long_urls_and_many_headers():
    error_of(OPEN.get("/v1/models?" + "x" * 9000), 414)
    error_of(OPEN.get("/v1/models", headers={f"h{n}": "x" for n in range(300)}), 431)


def test_a_body_that_never_comes():
    async def slow():
        yield b'{"messages": '
        await asyncio.sleep(30)

    app = InProcess(says("x"), body_timeout_s=0.05)
    headers = {"Content-Type": "application/json"}
    error_of(app.request("POST", "/v1/completions", content=slow(), headers=headers), 408)


def test_health_follows_the_engine():
    engine = says("x")
    app = InProcess(engine)
    assert app.get("/health").status_code == 200
    engine.ready = False
    response = app.get("/health")
    assert error_of(response, 503)["code"] == "unavailable"
    assert response.headers["retry-after"] == "1"
    assert app.post("/ping").status_code == 503


def test_request_ids_come_back_as_text_only():
    assert OPEN.get("/version", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == (
        "abc-1"
    )
    made = [OPEN.get("/version").headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    odd = [(b"x-request-id", b"a b\tc\xff" + b"d" * 500)]
    assert OPEN.get("/version", headers=odd).headers["x-request-id"] == ("abc" + "d" * 500)[:128]


def test_a_clients_id_never_becomes_ours():
    engine = says("x")
    app = InProcess(engine)
    for _ in range(2):
        body = {"messages": USER, "request_id": "mine"}
        headers = {"X-Request-Id": "___decode_addr_1.2.3.4"}
        assert app.post("/v1/chat/completions", body, headers=headers).status_code == 200
    assert len({request.request_id for request in engine.requests}) == 2
    assert not any("mine" in r.request_id or "addr" in r.request_id for r in engine.requests)


def test_a_request_may_be_named_in_its_body():
    assert OPEN.chat(request_id="mine\n").headers["x-request-id"] == "mine"
    headers = {"X-Request-Id": "header"}
    body = {"messages": USER, "request_id": "mine"}
    response = OPEN.post("/v1/chat/completions", body, headers=headers)
    assert response.headers["x-request-id"] == "header"


def test_tenants_do_not_share_prefixes():
    engine = says("x")
    app = InProcess(engine, api_keys=("a", "b"))
    for key in ("a", "b", "a"):
        body = {"messages": USER, "cache_salt": "s"}
        app.post("/v1/chat/completions", body, headers={"x-api-key": key})
    salts = [request.cache_salt for request in engine.requests]
    assert salts[0] == salts[2] != salts[1]


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_access_log_is_one_line_whatever_comes(form, caplog):
    app = InProcess(says("Hello"), access_log=form)
    with caplog.at_level(logging.INFO, "xpyd.access"):
        app.chat(user="secret prompt")
        app.get("/v1/a%0Ainjected: yes")
    first, second = [r.getMessage() for r in caplog.records if r.name == "xpyd.access"]
    assert "\n" not in first + second and "secret" not in first
    if form == "json":
        entry = json.loads(first)
        assert entry["path"] == "/v1/chat/completions" and entry["status"] == 200
        assert entry["completion_tokens"] == 5 or entry["completion_tokens"] > 0
        assert json.loads(second)["status"] == 404
    else:
        assert "status=200" in first and "status=404" in second


def test_timings_are_told_in_a_header():
    for body in ({}, {"stream": True}):
        entries = OPEN.chat(**body).headers["server-timing"].split(", ")
        spent = {name: float(ms) for name, _, ms in (each.partition(";dur=") for each in entries)}
        assert list(spent) == ["tokenize", "proxy_queue", "prefill", "deliver", "ttft"]
        assert sum(spent.values()) == pytest.approx(2 * spent["ttft"], abs=0.01)


def test_the_documentation_names_every_endpoint():
    paths = OPEN.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize"} <= set(paths)
    schema = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert "messages" in schema["schema"]["properties"]


def test_models_are_found_with_and_without_an_encoded_slash():
    with served(app_of(says("x"))) as url, httpx.Client(timeout=60) as client:
        for path in (f"/v1/models/{MODEL}", f"/v1/models/{MODEL.replace('/', '%2F')}"):
            assert client.get(url + path).json()["id"] == MODEL
        error_of(client.get(url + "/v1/models/other"), 404)


def test_no_model_is_ready():
    class Empty(ScriptedEngine):
        def models(self):
            return []

    response = InProcess(Empty(Script())).chat()
    assert error_of(response, 503)["code"] == "unavailable"
