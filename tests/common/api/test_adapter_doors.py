"""The doors for loading adapters: who may knock, and with what."""

import asyncio

import httpx
import pytest

from common.api.adapters import PATHS, add_adapter_doors
from common.api.app import ApiSettings, create_app
from common.errors import BadRequest
from common.metrics import Metrics
from tests.common.api.apps import error_of, says, text_model

ADMIN = {"Authorization": "Bearer root"}


class Door:
    """Keeps what it is asked; refuses the name `no`."""

    def __init__(self):
        self.asked = []

    async def load(self, name, path):
        self.asked.append((name, path))
        if name == "no":
            raise BadRequest("it cannot be", "lora_path")

    async def unload(self, name):
        self.asked.append((name,))


def post(action, body, headers=ADMIN, keys=("root",)):
    """(answer, what the door was asked)"""
    settings = ApiSettings(api_keys=("user",), own_guard_paths=PATHS)
    app = create_app(says("x"), lambda model: text_model(), Metrics("", "m"), settings)
    door = Door()
    add_adapter_doors(app, settings, keys=keys, door=door)

    async def run():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test", trust_env=False
        ) as client:
            path = f"/v1/{action}_lora_adapter"
            return await client.post(path, json=body, headers=headers)

    return asyncio.run(run()), door.asked


def test_what_is_asked_is_passed_on_and_answered_as_vllm_does():
    answer, asked = post("load", {"lora_name": "a", "lora_path": "/p", "load_inplace": False})
    assert asked == [("a", "/p")]
    assert answer.text == "Success: LoRA adapter 'a' added successfully."
    answer, asked = post("unload", {"lora_name": "a", "lora_int_id": 1})
    assert asked == [("a",)]
    assert answer.text == "Success: LoRA adapter 'a' removed successfully."


@pytest.mark.parametrize("action", ["load", "unload"])
def test_only_the_administrators_key_opens(action):
    body = {"lora_name": "a", "lora_path": "/p"}
    for headers in ({}, {"Authorization": "Bearer user"}):
        answer, asked = post(action, body, headers)
        assert error_of(answer, 401)["code"] == "invalid_api_key"
        assert not asked
    answer, asked = post(action, body, keys=("",))
    assert "ADMIN_API_KEY" in error_of(answer, 403)["message"]
    assert not asked


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("lora_name", value) for value in (None, "", "a/b", "..\n", "x" * 65, 7, "ä")),
        *(("lora_path", value) for value in (None, "", 7, "x" * 1025)),
        ("load_inplace", True),
        ("is_3d_lora_weight", True),
    ],
)
def test_a_wish_that_is_not_understood_is_refused_by_name(field, value):
    answer, asked = post("load", {"lora_name": "a", "lora_path": "/p"} | {field: value})
    assert error_of(answer, 400)["param"] == field
    assert not asked


def test_what_the_door_refuses_is_told():
    answer, _ = post("load", {"lora_name": "no", "lora_path": "/p"})
    assert error_of(answer, 400)["message"] == "it cannot be"
