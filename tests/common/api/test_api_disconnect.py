"""A client that hangs up, or stops reading, ends its work at once: all of its sequences."""

import http.client
import json
import socket
import time

import httpx
import pytest

from common.api.scripted import Script, ScriptedEngine
from tests.common.api.apps import MODEL, USER, InProcess, app_of, says, served, tokens, wait_for

ENDLESS = Script(tokens("x") * 1500, delay_s=0.01)


def connect(url):
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)


def post(connection, path, body):
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})


def hang_up(connection):
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        ("/v1/chat/completions", {"messages": USER}, 1),
        ("/v1/chat/completions", {"messages": USER, "n": 3}, 3),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 1000}, 4),
        ("/inference/v1/generate", {"token_ids": [1]}, 1),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_aborts_every_sequence(path, body, count, stream):
    engine = ScriptedEngine(ENDLESS, model=MODEL)
    with served(app_of(engine)) as url:
        connection = connect(url)
        post(connection, path, {**body, "stream": stream})
        if stream:
            response = connection.getresponse()
            assert response.read(10).startswith(b"data: ")
            response.close()
        wait_for(lambda: len(engine.running) == count)
        connection.close()
        wait_for(lambda: not engine.running)
        assert len(engine.aborted) == count


def test_hanging_up_before_the_first_token():
    engine = ScriptedEngine(Script(tokens("x"), first_delay_s=30), model=MODEL)
    with served(app_of(engine)) as url:
        connection = connect(url)
        post(connection, "/v1/chat/completions", {"messages": USER, "stream": True})
        wait_for(lambda: engine.running)
        hang_up(connection)
        wait_for(lambda: not engine.running)
    assert len(engine.aborted) == 1


def test_a_client_that_never_reads_is_dropped():
    """The socket buffers fill, then nothing is made for it any more, then it is cut off."""
    engine = ScriptedEngine(Script(tokens("x") * 1_000_000), model=MODEL, max_model_len=1 << 21)
    with served(app_of(engine, stalled_reader_s=0.4)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect((host, int(port)))
            body = json.dumps({"messages": USER, "stream": True}).encode()
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            raw.sendall(head.encode() + body)
            wait_for(lambda: engine.running)
            wait_for(lambda: engine.aborted)
        with httpx.Client(timeout=60) as client:
            assert client.get(f"{url}/health").status_code == 200  # others are served


def test_a_finished_answer_aborts_nothing():
    engine = says("Hello")
    with served(app_of(engine)) as url:
        connection = connect(url)
        for stream in (True, False):
            post(connection, "/v1/chat/completions", {"messages": USER, "stream": stream})
            assert b"o" in connection.getresponse().read()  # kept alive: one connection for both
        connection.close()
        time.sleep(0.05)
    assert len(engine.requests) == 2
    assert not engine.aborted


def test_the_load_is_counted_and_falls_back():
    engine = ScriptedEngine(ENDLESS, model=MODEL)
    with served(app_of(engine)) as url:

        def load():
            watcher = connect(url)
            watcher.request("GET", "/load")
            value = json.loads(watcher.getresponse().read())["server_load"]
            watcher.close()
            return value

        connection = connect(url)
        post(connection, "/v1/chat/completions", {"messages": USER, "n": 2})
        wait_for(lambda: load() == 2)
        connection.close()
        wait_for(lambda: load() == 0)


def test_aborts_and_ends_are_counted_apart():
    engine = ScriptedEngine(ENDLESS, model=MODEL)
    app = InProcess(says("Hello world"))
    app.chat()
    app.complete(max_tokens=1)
    page = app.get("/metrics").text
    labels = f'engine="0",finished_reason="{{}}",model_name="{MODEL}"'
    assert f"xpyd:request_success_total{{{labels.format('stop')}}} 1.0" in page
    assert f"xpyd:request_success_total{{{labels.format('length')}}} 1.0" in page
    with served(app_of(engine)) as url:
        connection = connect(url)
        post(connection, "/v1/chat/completions", {"messages": USER})
        wait_for(lambda: engine.running)
        connection.close()
        wait_for(lambda: not engine.running)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
        connection.close()
    assert f"xpyd:request_success_total{{{labels.format('abort')}}} 1.0" in page
