"""Raw sockets against the HTTP server: slow, huge, contradictory and stalled clients are answered
or cut off in time, and everybody else is served meanwhile."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import threading
import time

import httpx
import pytest
import uvloop
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from common.errors import ConfigError
from common.http_protocol import HttpLimits
from common.http_server import bind, refuse_open_bind, serve_app, tls_of, url_of

LIMITS = HttpLimits(header_s=1.0, body_s=1.5, stalled_s=1.5, max_connections=12)


def make_app():
    app = FastAPI()

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        body = await request.body()
        headers = {name.decode(): value.decode() for name, value in request.scope["headers"]}
        return JSONResponse({"bytes": len(body), "headers": headers})

    @app.post("/early")
    async def early() -> Response:
        return JSONResponse({}, status_code=401)

    @app.get("/flood")
    async def flood() -> Response:
        async def pieces():
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                app.state.ended += 1

        app.state.ended = 0
        return StreamingResponse(pieces())

    return app


class Served:
    """The real server on uvloop, as proxy and instances run it, in a thread."""

    def __init__(self, limits=LIMITS, tls=None):
        self.app = make_app()
        self.listener = bind("127.0.0.1", 0)
        self.url = url_of(self.listener, tls)
        self.address = self.listener.getsockname()
        self._thread = threading.Thread(target=uvloop.run, args=(self._run(limits, tls),))

    async def _run(self, limits, tls):
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        await serve_app(
            self.app,
            self.listener,
            drain=lambda: asyncio.sleep(0),
            stopped=self._stopped,
            limits=limits,
            tls=tls,
        )

    def __enter__(self):
        self._thread.start()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/health", timeout=2, verify=False)
                return self
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError("the server did not start")

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def connect(self):
        made = socket.create_connection(self.address, timeout=6)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def assert_healthy(self):
        began = time.monotonic()
        assert httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        assert time.monotonic() - began < 5.0


@pytest.fixture(scope="module")
def server():
    with Served() as served:
        yield served


def read_all(sock):
    """Everything until the server closes."""
    data = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def ask(server, data, at_most_s=1.0):
    """The answer to `data`, which must come and end in time; health is served meanwhile."""
    with server.connect() as sock:
        began = time.monotonic()
        sock.sendall(data)
        server.assert_healthy()
        answer = read_all(sock)
        assert time.monotonic() - began < at_most_s + 1.0
        return answer


def status_of(answer):
    """Of the only answer; an error must be our object."""
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    if status >= 400 and body:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert b"connection: close" in head
    return status


POST = b"POST /echo HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"not http at all\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        POST + b"Content-Length: +5\r\n\r\nhello",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 5, 5\r\n\r\nhello",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
        b"POST /echo HTTP/1.1\nHost: x\nContent-Length: 2\n\nhi",
        POST + b"X: a\nContent-Length: 2\r\n\r\nhi",
        POST + b"X: a\rContent-Length: 2\r\n\r\nhi",
        POST + b"X: a\x00b\r\n\r\n",
        POST + b"Bad Name: a\r\n\r\n",
        POST + b": a\r\n\r\n",
    ],
)
def test_contradictory_and_broken_requests_are_400(server, data):
    assert status_of(ask(server, data)) == 400


def test_both_lengths_never_give_two_answers(server):
    smuggled = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    data = POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled
    assert status_of(ask(server, data)) == 400


def test_too_many_headers_are_431(server):
    many = b"".join(b"x-%d: 1\r\n" % n for n in range(300))
    answer = ask(server, b"GET /health HTTP/1.1\r\n" + many + b"\r\n")
    assert status_of(answer) == 431
    few = b"".join(b"x-%d: 1\r\n" % n for n in range(250))
    closing = b"Connection: close\r\n\r\n"
    assert status_of(ask(server, b"GET /health HTTP/1.1\r\n" + few + closing)) == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nx: " + b"a" * 80_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx: " + b"a" * 80_000,
        b"GET /health HTTP/1.1\r\n" + b"x" * 80_000,
        b"GET /" + b"a" * 80_000,
        b"GET /health HTTP/1.1\r\n" + (b"x: " + b"a" * 1000 + b"\r\n") * 200 + b"\r\n",
    ],
)
def test_huge_headers_are_431(server, head):
    assert status_of(ask(server, head)) == 431


def test_trailers_are_counted_and_dropped(server):
    chunked = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
    answer = ask(server, chunked + b"Authorization: Bearer k\r\n\r\n")
    assert status_of(answer) == 200
    assert b"authorization" not in answer
    many = b"".join(b"x-%d: 1\r\n" % n for n in range(300))
    assert status_of(ask(server, chunked + many)) == 431


@pytest.mark.parametrize("begin", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_slow_headers_are_closed(server, begin):
    """One byte now and then does not buy more time."""
    with server.connect() as sock:
        began = time.monotonic()
        sock.sendall(begin)
        sock.settimeout(0.3)
        data = None
        while data is None and time.monotonic() - began < 5:
            try:
                data = sock.recv(1000)
            except TimeoutError:
                if begin:
                    sock.sendall(b"x")
        assert time.monotonic() - began < 6.5
        assert data is not None
        assert not data or status_of(data) == 408
        server.assert_healthy()


def test_empty_lines_do_not_keep_a_connection(server):
    with server.connect() as sock:
        began = time.monotonic()
        sock.settimeout(0.3)
        while time.monotonic() - began < 5:
            try:
                if not sock.recv(1000):
                    break
            except TimeoutError:
                sock.sendall(b"\r\n")
            except OSError:
                break
        assert time.monotonic() - began < 6.5


@pytest.mark.parametrize(
    "head", [b"Content-Length: 100000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nffff\r\n"]
)
def test_a_body_that_never_comes_is_closed(server, head):
    with server.connect() as sock:
        began = time.monotonic()
        sock.sendall(POST + head)
        sock.settimeout(0.3)
        data = None
        while data is None and time.monotonic() - began < 6:
            try:
                data = sock.recv(1000)
            except TimeoutError:
                sock.sendall(b"x")
        assert 1.0 < time.monotonic() - began < 7.5
        assert data and status_of(data) == 408
        server.assert_healthy()


def test_an_early_answer_does_not_keep_the_connection(server):
    """Answered, and the body never comes: closed as if it had not been answered."""
    with server.connect() as sock:
        began = time.monotonic()
        sock.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 401")
        assert time.monotonic() - began < 8


def test_honest_clients_are_untouched(server):
    with httpx.Client(base_url=server.url) as client:
        for size in (0, 10, 300_000):
            answer = client.post("/echo", content=b"x" * size)
            assert answer.json()["bytes"] == size
        time.sleep(2.0)  # idle, longer than any deadline for one who has begun to send
        assert client.post("/echo", content=b"x").json()["bytes"] == 1
        assert client.post("/echo", content=iter([b"ab", b"cd"])).json()["bytes"] == 4


def test_pipelined_requests_are_answered_in_order(server):
    data = b"".join(POST + b"Content-Length: %d\r\n\r\n" % n + b"x" * n for n in (1, 2, 3))
    with server.connect() as sock:
        sock.sendall(data)
        found = b""
        while found.count(b'"bytes"') < 3:
            found += sock.recv(65536)
    assert [found.index(b'"bytes":%d' % n) for n in (1, 2, 3)] == sorted(
        found.index(b'"bytes":%d' % n) for n in (1, 2, 3)
    )


def test_a_flood_of_pipelined_requests_is_cut(server):
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        assert read_all(sock).count(b"HTTP/1.1 200") <= LIMITS.max_pipelined + 1
    server.assert_healthy()


def test_an_upgrade_is_answered_as_http_and_closed(server):
    answer = ask(
        server,
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        b"GET /health HTTP/1.1\r\n\r\n",
    )
    assert status_of(answer) == 200


def test_connections_beyond_the_limit_get_503():
    with Served() as server:
        held = [server.connect() for _ in range(LIMITS.max_connections)]
        time.sleep(0.2)
        with server.connect() as late:
            assert status_of(read_all(late)) == 503
        deadline = time.monotonic() + 4  # those who say nothing make room
        while time.monotonic() < deadline:
            try:
                server.assert_healthy()
                break
            except (AssertionError, httpx.TransportError):
                time.sleep(0.1)
        server.assert_healthy()
        for one in held:
            one.close()


def test_a_stalled_readers_socket_is_really_closed(server):
    with server.connect() as sock:
        sock.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        local = sock.getsockname()[1]
        assert _has_connection(server, local)
        deadline = time.monotonic() + 8
        while _has_connection(server, local):
            server.assert_healthy()
            assert time.monotonic() < deadline, "still open"
            time.sleep(0.2)
        assert server.app.state.ended == 1


def _has_connection(server, port):
    """Does the kernel still show the server's end as established?"""
    ours, theirs = f":{server.address[1]:04X}", f":{port:04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return any(
        row[1].endswith(ours) and row[2].endswith(theirs) and row[3] in ("01", "04", "05", "08")
        for row in rows
    )


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return str(cert), str(key)


def test_tls_with_a_certificate_of_our_own(certificate):
    tls = tls_of(*certificate)
    trusting = ssl.create_default_context(cafile=certificate[0])
    with Served(tls=tls) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with httpx.Client(base_url=server.url, verify=trusting) as client:
            assert client.get("/health").status_code == 200
            assert client.post("/echo", content=b"x" * 200_000).json()["bytes"] == 200_000
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.url}/health")
        with server.connect() as sock:  # plain HTTP is not answered
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1.1 200" not in read_all(sock)


def test_slow_headers_are_closed_under_tls_too(certificate):
    trusting = ssl.create_default_context(cafile=certificate[0])
    with (
        Served(tls=tls_of(*certificate)) as server,
        server.connect() as plain,
        trusting.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        began = time.monotonic()
        sock.sendall(b"GET /health HTT")
        assert status_of(read_all(sock)) == 408
        assert time.monotonic() - began < 8


def test_files_that_are_no_certificate_are_refused_in_one_line(certificate, tmp_path):
    (tmp_path / "x.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="No such file"):
        tls_of(str(tmp_path / "none.pem"), "")
    with pytest.raises(ConfigError, match="--ssl-certfile"):
        tls_of(str(tmp_path / "x.pem"), "")
    with pytest.raises(ConfigError, match="--ssl-certfile"):
        tls_of(certificate[0], "")  # the key is in another file
    with pytest.raises(ConfigError, match="needs --ssl-certfile"):
        tls_of("", certificate[1])
    assert tls_of("", "") is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_an_open_door_needs_a_key_or_a_word(host):
    with pytest.raises(ConfigError, match="--allow-open-http"):
        refuse_open_bind(host, has_keys=False, is_allowed=False)
    refuse_open_bind(host, has_keys=True, is_allowed=False)
    refuse_open_bind(host, has_keys=False, is_allowed=True)
    refuse_open_bind("127.0.0.1", has_keys=False, is_allowed=False)
