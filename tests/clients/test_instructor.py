"""Instructor: answers as objects, by tools and by JSON schema."""

from __future__ import annotations

import pytest

from tests.clients.conftest import KINDS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROGRAM = """
from enum import Enum
from typing import List
import instructor
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field

class Kind(str, Enum):
    SPAM = "spam"
    HAM = "ham"

class Mail(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Kind
    score: int = Field(ge=0, le=10)
    others: List[Kind] = Field(max_length=2)

client = OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
for name in ("TOOLS", "JSON_SCHEMA"):
    made = instructor.from_openai(client, mode=getattr(instructor.Mode, name))
    mail = made.chat.completions.create(
        model=MODEL, response_model=Mail, max_retries=0, temperature=0, max_tokens=200,
        messages=[{"role": "user", "content": "Classify this mail: win money now"}])
    results[name] = mail.model_dump(mode="json")
"""


@pytest.fixture(scope="module")
def both_results(run_program):
    return run_program("instructor", PROGRAM)


@pytest.fixture(params=KINDS)
def results(request, both_results):
    return both_results[request.param]


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_an_object_comes_back(results, mode):
    mail = results[mode]
    assert mail["kind"] in ("spam", "ham")
    assert 0 <= mail["score"] <= 10
    assert set(mail["others"]) <= {"spam", "ham"}
