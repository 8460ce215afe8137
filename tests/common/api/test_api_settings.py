"""What an operator chooses on the command line, seen by a client."""

import argparse
import dataclasses
import json

import pytest

from common.api.settings import ApiSettings, api_settings
from common.config import ProxyConfig, ServeConfig
from common.errors import ConfigError
from common.options import add_options, from_args
from tests.common.api.apps import (
    MODEL,
    TEMPLATE,
    USER,
    InProcess,
    error_of,
    says,
    text_model,
    tokens,
)


def configured(*argv, program=ProxyConfig):
    parser = argparse.ArgumentParser()
    add_options(parser, program)
    return api_settings(from_args(program, parser.parse_args(argv), {}))


def app_with(engine, *argv):
    made = configured(*argv)
    changed = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    return InProcess(engine, **changed)


@pytest.mark.parametrize("program", [ProxyConfig, ServeConfig])
def test_defaults(program):
    argv = ["model"] if program is ServeConfig else []
    assert configured(*argv, program=program) == ApiSettings()


# --- sampling defaults ---------------------------------------------------------------------------


def sampled_with(tmp_path, monkeypatch, choice):
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.5}')
    authors = {"temperature": 0.3, "top_k": 7}
    monkeypatch.setattr(text_model(), "sampling_defaults", authors)
    engine = says("x")
    app = app_with(engine, "--generation-config", str(tmp_path) if choice == "DIR" else choice)
    assert app.chat().status_code == 200
    sampling = engine.requests[0].sampling
    return sampling.temperature, sampling.top_k, sampling.top_p


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("auto", (0.3, 7, 1.0)), ("vllm", (1.0, 0, 1.0)), ("DIR", (0.9, 0, 0.5))],
)
def test_generation_config(tmp_path, monkeypatch, choice, expected):
    assert sampled_with(tmp_path, monkeypatch, choice) == expected


def test_a_missing_generation_config_is_told_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="--generation-config"):
        configured("--generation-config", str(tmp_path))


# --- templates, logprobs, tokenizer --------------------------------------------------------------


def test_templates_from_clients_need_trust():
    body = {"chat_template": "{% for m in messages %}[{{ m.content }}]{% endfor %}"}
    assert error_of(app_with(says("x")).chat(**body), 400)["param"] == "chat_template"
    engine = says("x")
    app = app_with(engine, "--trust-request-chat-template")
    assert app.chat(**body).status_code == 200
    assert engine.requests[0].prompt_token_ids == tokens("[Hi]")
    hostile = {"chat_template": "{% for i in range(10**9) %}{{ i }}{% endfor %}"}
    assert error_of(app.chat(**hostile), 400)["param"]


@pytest.mark.parametrize(
    ("flag", "asked", "status"), [("5", 6, 400), ("5", 5, 200), ("-1", 99, 200)]
)
def test_max_logprobs(flag, asked, status):
    app = app_with(says("x"), "--max-logprobs", flag)
    answer = app.chat(logprobs=True, top_logprobs=asked)
    assert answer.status_code == status
    if status == 200:
        entry = answer.json()["choices"][0]["logprobs"]["content"][0]
        assert len(entry["top_logprobs"]) == asked


def test_max_logprobs_has_a_lower_bound():
    with pytest.raises(ConfigError, match="--max-logprobs"):
        configured("--max-logprobs", "-2")


def test_tokenizer_info_by_flag():
    error_of(app_with(says("x")).get("/tokenizer_info"), 404)
    found = app_with(says("x"), "--enable-tokenizer-info-endpoint").get("/tokenizer_info").json()
    assert found["chat_template"] == TEMPLATE
    assert found["eos_token"] == "<|im_end|>"


# --- web pages -----------------------------------------------------------------------------------

PREFLIGHT = {
    "Origin": "https://page.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def test_no_origin_is_allowed_unless_named():
    app = app_with(says("x"))
    response = app.get("/version", headers={"Origin": "https://page.example"})
    assert "access-control-allow-origin" not in response.headers


def test_a_named_origin_may_ask_before_it_has_a_key():
    app = app_with(says("x"), "--allowed-origins", "https://page.example", "--api-key", "k")
    path = "/v1/chat/completions"
    asked = app.request("OPTIONS", path, headers=PREFLIGHT)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://page.example"
    refused = app.post(path, {"messages": USER}, headers={"Origin": "https://page.example"})
    error_of(refused, 401)
    assert refused.headers["access-control-allow-origin"] == "https://page.example"
    other = app.request("OPTIONS", path, headers={**PREFLIGHT, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


# --- /invocations --------------------------------------------------------------------------------


def test_invocations_go_where_the_body_belongs():
    app = InProcess(says("Hello"))
    chat = app.post("/invocations", {"messages": USER}).json()
    assert chat["object"] == "chat.completion" and chat["model"] == MODEL
    text = app.post("/invocations", {"prompt": "Hi", "max_tokens": 9}).json()
    assert text["object"] == "text_completion" and text["choices"][0]["text"] == "Hello"
    streamed = app.post("/invocations", {"prompt": "Hi", "stream": True}).text
    assert streamed.endswith("data: [DONE]\n\n")
    assert json.loads(streamed.split("\n\n")[0][6:])["object"] == "text_completion"
    error_of(app.post("/invocations", {"input": "Hi"}), 400)
    error_of(app.post("/invocations", {"messages": USER, "temperature": 9}), 400)
