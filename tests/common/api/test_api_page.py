"""docs/api.md against the server: all fields are in it, and what it says is refused is refused."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from common.api import protocol, refusals
from common.api.anthropic.protocol import MessagesRequest
from tests.common.api.apps import InProcess, error_of, says

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
NAMED = set(re.findall(r"`([a-z_.]+)`", PAGE))
APP = InProcess(says("Hello"))

REQUESTS = (
    protocol.ChatRequest,
    protocol.CompletionRequest,
    protocol.GenerateRequest,
    protocol.AbortRequest,
    protocol.TokenizeChat,
    protocol.TokenizePrompt,
    protocol.DetokenizeRequest,
)


def rows(heading):
    """(field, where, example) of the table under a heading."""
    table = PAGE.partition(f"### {heading}")[2].partition("\n#")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith("`"):
            where = cells[1] if len(cells) == 3 else "C T"
            yield cells[0].strip("`"), where, json.loads(cells[-1].strip("`"))


UNUSED = list(rows("Accepted"))
REFUSED = list(rows("Refused"))


def own_fields(model: type[BaseModel]) -> set[str]:
    """Also of the objects inside."""
    found = set(model.model_fields)
    for field in model.model_fields.values():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= own_fields(part)
    return found


@pytest.mark.parametrize("model", REQUESTS)
def test_every_field_is_on_the_page(model):
    told = NAMED | {name.rpartition(".")[2] for name in NAMED}
    assert own_fields(model) <= told


def test_every_path_is_on_the_page():
    paths = InProcess(says("x"), show_tokenizer=True).get("/openapi.json").json()["paths"]
    assert [path for path in paths if path not in PAGE] == []


def test_every_refusal_is_on_the_page():
    told = {name for name, _, _ in REFUSED}
    table = {*refusals.CHAT, *refusals.COMPLETIONS, *refusals.GENERATE}
    unnamed = {"guided_whitespace_pattern", "structural_tags"}
    assert table - told <= unnamed
    assert told - table == {"kv_transfer_params", "ec_transfer_params", "bootstrap_room"}


@pytest.mark.parametrize(("name", "where", "value"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refused(name, where, value):
    if "C" in where:
        assert error_of(APP.chat(**{name: value}), 400)["param"] == name
    if "T" in where:
        assert error_of(APP.complete(**{name: value}), 400)["param"] == name


def asked(send, **body):
    """What the engine is asked for, without what differs each time."""
    assert send(seed=1, **body).status_code == 200
    request = APP.engine.requests[-1]
    return request.sampling, request.prompt_token_ids, request.priority, request.cache_salt


@pytest.mark.parametrize(("name", "where", "value"), UNUSED, ids=[r[0] for r in UNUSED])
def test_without_effect(name, where, value):
    outer, _, inner = name.partition(".")
    body = {outer: {inner: value}, "stream": True} if inner else {name: value}
    assert outer in protocol.ChatRequest.model_fields
    for send in (APP.chat, APP.complete):
        assert asked(send, **body) == asked(send)


def test_the_page_on_messages_names_every_field():
    page = (Path(__file__).parents[3] / "docs" / "anthropic-api.md").read_text()
    told = set(re.findall(r"`([a-z_]+)`", page))
    assert set(MessagesRequest.model_fields) <= told
