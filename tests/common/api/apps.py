"""Apps over a scripted engine, in process or behind a real server in a thread."""

import asyncio
import contextlib
import json
import threading
import time
from functools import cache

import httpx
import uvicorn

from common.api.app import ApiSettings
from common.api.app import create_app as create_real_app
from common.api.scripted import Script, ScriptedEngine
from common.metrics import Metrics
from common.text import TextModel
from tests.common.api.answer_types import Checked
from tests.common.made_tokenizers import byte_level

MODEL = "org/scripted"
TEMPLATE = (
    "{% if tools %}[tools]{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = [{"role": "user", "content": "Hi"}]


@cache
def text_model() -> TextModel:
    return TextModel(
        byte_level(), templates={"default": TEMPLATE}, special_tokens={"eos_token": "<|im_end|>"}
    )


def tokens(text):
    return tuple(text_model().encode(text))


def says(text, **options):
    """An engine that answers everything with `text`."""
    return ScriptedEngine(Script(tokens(text), **options), model=MODEL)


def create_app(*parts, **options):
    """The app, with everything that it answers checked."""
    return Checked(create_real_app(*parts, **options))


def app_of(engine, **settings):
    metrics = Metrics(model_name=MODEL)
    return create_app(engine, lambda model: text_model(), metrics, ApiSettings(**settings))


class InProcess:
    """Synchronous requests to an app without a socket."""

    def __init__(self, engine, **settings):
        self.engine = engine
        self._app = app_of(engine, **settings)

    def request(self, method, path, **options):
        async def run():
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test", trust_env=False
            ) as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, body=None, **options):
        return self.request("POST", path, json=body, **options)

    def chat(self, **body):
        return self.post("/v1/chat/completions", {"messages": USER, **body})

    def complete(self, **body):
        return self.post("/v1/completions", {"prompt": "Hi", **body})


def events(response):
    """The JSON of each event; the stream must end in [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines[:-2])
    return [json.loads(line[6:]) for line in lines[:-2]]


def error_of(response, status):
    """The error object, checked for form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    assert "Traceback" not in body["error"]["message"]
    return body["error"]


@contextlib.contextmanager
def served(app):
    """The app behind uvicorn on a free port, in a thread; gives its base URL."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", access_log=False, lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def wait_for(condition, deadline_s=60.0):
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
