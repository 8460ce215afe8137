"""HEAD, Allow and the shape of errors, by path."""

import httpx
import pytest

from tests.common.api.apps import InProcess, app_of, error_of, says, served

OPEN = InProcess(says("x"))


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/v1/models", "/metrics"])
def test_head_is_get_without_a_body(path):
    head, get = OPEN.request("HEAD", path), OPEN.get(path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.content == b"" != get.content


def test_head_over_a_socket():
    with served(app_of(says("x"))) as url, httpx.Client(timeout=60) as client:
        assert client.head(f"{url}/v1/models").headers["content-length"] != "0"
        assert client.get(f"{url}/version").status_code == 200  # the connection is still in order


def test_head_where_there_is_no_get():
    assert OPEN.request("HEAD", "/v1/completions").status_code == 405
    assert OPEN.request("HEAD", "/nowhere").status_code == 404


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/ping", "GET, HEAD, POST"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/chat/completions", "POST"),
    ],
)
def test_allow_names_every_method(path, allowed):
    response = OPEN.request("PATCH", path)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == allowed


def messages_error_of(response, status, kind):
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error"} and body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == kind
    return body["error"]["message"]


def test_anthropic_paths_answer_in_their_shape():
    keyed = InProcess(says("x"), api_keys=("k",))
    messages_error_of(keyed.post("/v1/messages", {}), 401, "authentication_error")
    messages_error_of(OPEN.post("/v1/messages/batches", {}), 404, "not_found_error")
    error_of(OPEN.get("/v1/messagesx"), 404)
