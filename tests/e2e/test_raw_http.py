"""Any bytes at the doors of a real proxy and a real instance: an answer that blames the sender, or
a closed connection; never our failure, and the servers are as good as before.

`tests/common/test_http_guard.py` has the single cases; here they are combined by chance.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.cluster import cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ANSWER_S = 60.0  # the server ends every connection long before
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
LAST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
GOOD = json.dumps({"prompt": "Hi", "max_tokens": 2, "temperature": 0}).encode()

methods = st.sampled_from(
    ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW", "get"]
    + ["PRI", "", "G\0T", "P" * 3000, "POST POST", "\xff\xfe"]
)
targets = st.sampled_from(
    ["/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics", "/tokenize"]
    + ["/status", "/instances", "/instances/add", "/instance", "/debug/kv", "/v1/responses"]
    + ["/v1/messages", "/inference/v1/generate", "//v1/models", "/v1/../v1/models", "/%00", "*"]
    + ["/%ff%fe", "/v1/models/%F0%9F%98%80", "http://evil.example/", "", "/" + "a" * 9000, "/\xff"]
    + ["/v1/completions?" + "a=b&" * 2000, "/v1/responses/../../etc/passwd", "\\\\evil\\v1", "/ /"]
)
versions = st.sampled_from(["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9", ""])
names = st.sampled_from(
    ["Host", "Content-Type", "Accept", "Authorization", "X-Request-Id", "Expect", "Upgrade"]
    + ["Connection", "Cookie", "X-Session-ID", "Content-Encoding", "Transfer-Encoding", "Origin"]
    + ["Content-Length", "X-Forwarded-For", "kv_transfer_params", "", " ", "A:B", "N\0", "\xe9"]
)
values = st.one_of(
    st.sampled_from(
        ["application/json", "text/plain", "x", "", "gzip", "chunked", "100-continue", "-1", "0"]
        + ["99999999999999999999", "close", "keep-alive", "h2c", "*/*", "Bearer x", "\0", "\xff"]
        + ["\t\t", "a" * 5000, "chunked, identity", "___decode_addr_127.0.0.1:1___", "\u00a0"]
    ),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=12),
)
bodies = st.one_of(
    st.just(GOOD),
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"[" * 100_000,
            b'{"a":' * 50_000,
            b'{"prompt": "\xff\xfe"}',
            b'{"prompt": "\\ud800"}',
            b"\xef\xbb\xbf" + GOOD,
            GOOD.decode().encode("utf-16"),
            b'{"prompt": "a", "prompt": "b", "max_tokens": 1}',
            b'{"prompt": NaN}',
            b'{"prompt": 1e999}',
            b'{"prompt": ' + b"9" * 10_000 + b"}",
            b'{"messages": [{"role": "user", "content": "\xf0\x9f"}]}',
            b'{"prompt": "x", "max_tokens": 2, "kv_transfer_params": {"host": "127.0.0.1"}}',
            b'{"prompt": "x", "max_tokens": 2, "stop": ["' + b"y" * 5000 + b'"]}',
            b"\0" * 500,
        ]
    ),
)


@st.composite
def requests(draw):
    """One request: a line, headers, a body, and a way of saying where it ends."""
    lines = [f"{draw(methods)} {draw(targets)} {draw(versions)}".encode("latin-1")]
    lines += [
        f"{name}: {value}".encode("latin-1", "replace")
        for name, value in draw(st.lists(st.tuples(names, values), max_size=5))
    ]
    body = draw(bodies)
    framing = draw(st.sampled_from(["length"] * 4 + ["chunks", "short", "long", "both", "odd"]))
    match framing:
        case "length":
            lines.append(b"Content-Length: %d" % len(body))
        case "short":
            lines.append(b"Content-Length: %d" % (len(body) // 2))
        case "long":
            lines.append(b"Content-Length: %d" % (len(body) + 10))
        case "both":
            lines += [b"Content-Length: 3", b"Transfer-Encoding: chunked"]
        case "odd":
            lines.append(b"Content-Length: " + draw(st.sampled_from([b"+1", b"0x5", b"1,1", b"-"])))
        case "chunks":
            lines.append(b"Transfer-Encoding: chunked")
            size = draw(
                st.sampled_from([b"%x" % len(body), b"0", b"-1", b"ffffffffffffffff1", b"g"])
            )
            body = size + b"\r\n" + body + b"\r\n0\r\n\r\n"
    ends = draw(st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r"]))
    return ends.join(lines) + ends * 2 + body


conversations = st.one_of(
    st.lists(requests(), min_size=1, max_size=4).map(b"".join),
    st.binary(max_size=300),
    st.lists(st.just(b"\r\n"), max_size=50).map(b"".join),
)


@pytest.fixture(scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def running(loop, tmp_path_factory):
    context = cluster(tmp_path_factory.mktemp("raw"), both=1)
    yield loop.run_until_complete(context.__aenter__())
    loop.run_until_complete(context.__aexit__(None, None, None))


def speak(url, data, cuts):
    """Everything the server says to these bytes, sent in pieces, until it closes."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=ANSWER_S) as connection:
        try:
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                connection.sendall(data[start:end])
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has heard enough
        said = b""
        try:
            while piece := connection.recv(65536):
                said += piece
        except ConnectionResetError:
            pass
        return said


@pytest.mark.parametrize("door", ["proxy", "instance"])
def test_whatever_comes_is_answered_or_closed(door, loop, running):
    url = running.url if door == "proxy" else running.instances[0].plan.url

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(conversation=conversations, is_closed=st.booleans(), data=st.data())
    def ask(conversation, is_closed, data):
        sent = conversation + (LAST if is_closed else b"")
        cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=3)))
        statuses = [int(status) for status in STATUS.findall(speak(url, sent, cuts))]
        assert all(200 <= status < 500 for status in statuses), statuses

    ask()
    loop.run_until_complete(is_as_before(running))


async def is_as_before(running):
    for url in (running.url, running.instances[0].plan.url):
        assert await running.status(f"{url}/health") == 200
        assert len(await running.generate(url, [5, 6, 7], max_tokens=4, ignore_eos=True)) == 4
    await running.at_rest(timeout_s=60)
    for child in (running.proxy, *running.instances):
        assert child.death() is None
        assert "Traceback" not in child.plan.log.read_text(), running.logs()


def test_slow_senders_hold_nobody_up(loop, running):
    """Many connections that send a byte now and then, while others are served."""
    host, _, port = running.url.removeprefix("http://").rpartition(":")

    async def trickle(connection):
        for byte in b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{":
            await asyncio.sleep(0.05)
            connection.write(bytes([byte]))

    async def body():
        made = [(await asyncio.open_connection(host, int(port)))[1] for _ in range(100)]
        tasks = [asyncio.create_task(trickle(connection)) for connection in made]
        for _ in range(5):
            tokens = await running.generate(running.url, [5, 6, 7], max_tokens=4, ignore_eos=True)
            assert len(tokens) == 4
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in made:
            connection.transport.abort()
        await is_as_before(running)

    loop.run_until_complete(body())
