"""Structured output through real processes: valid, the same anywhere, no burden on others."""

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.common.engine.schemas import SCHEMAS
from tests.e2e.cluster import cluster
from tests.e2e.streams import outcome, until_flowing

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ARGUMENTS = (
    *("--load-format", "dummy", "--max-model-len", "2048", "--kv-cache-memory", "64MiB"),
    *("--max-num-batched-tokens", "128"),
)
PROMPT = [i % 700 + 3 for i in range(90)]
NAMES = ("flat", "oneOf by tag", "unicode keys", "tree", "matrix", "uuid", "enum", "optional")
NUMBERS = r"\d{3}( \d{3}){80}"


Check = Callable[[str], object]


def workload() -> list[tuple[dict[str, Any], int, Check]]:
    """(structured_outputs, number, check of a complete answer)"""
    made: list[tuple[dict[str, Any], int, Check]] = []
    for n, name in enumerate(NAMES):
        made.append(({"json": SCHEMAS[name]}, n, partial(_must_fit, SCHEMAS[name])))
    for n, pattern in enumerate((r"\b[A-Z]{2}\d{4}\b", r"\w{3,9}", r"(yes|no)\.")):
        made.append(({"regex": pattern}, n, partial(_must_match, pattern)))
    made.append(({"choice": ["SPAM", "NOT_SPAM"]}, 0, partial(_must_match, "SPAM|NOT_SPAM")))
    grammar = 'root ::= [a-c]{2,5} ("+" [0-9]+)* "."'
    made.append(({"grammar": grammar}, 1, partial(_must_match, r"[a-c]{2,5}(\+[0-9]+)*\.")))
    return made


def _must_fit(schema, text):
    Draft202012Validator(schema).validate(json.loads(text))


def _must_match(pattern, text):
    assert re.fullmatch(pattern, text), text


def sampling(structured, n):
    temperature = {"temperature": 0} if n % 3 == 2 else {"temperature": 1.5, "seed": 100 + n}
    return {"structured_outputs": structured, "max_tokens": 120, **temperature}


async def run(made, url, concurrency):
    places = asyncio.Semaphore(concurrency)

    async def one(structured, n):
        async with places:
            body = {
                "token_ids": PROMPT[: 40 + n],
                "sampling_params": sampling(structured, n),
                "output_mode": "text",
            }
            async with made.session.post(f"{url}/inference/v1/generate", json=body) as answer:
                assert answer.status == 200, await answer.text()
                choice = (await answer.json())["choices"][0]
                return choice["token_ids"], choice["text"], choice["finish_reason"]

    return await asyncio.gather(*(one(structured, n) for structured, n, _ in workload()))


def test_tokens_are_those_of_one_instance(tmp_path):
    async def body():
        async with cluster(tmp_path / "both", both=1, proxy=False, arguments=ARGUMENTS) as made:
            expected = await run(made, made.instances[0].plan.url, 1)
            assert await run(made, made.instances[0].plan.url, 8) == expected
        complete = 0
        for (_, text, reason), (_, _, check) in zip(expected, workload(), strict=True):
            if reason == "stop":
                check(text)
                complete += 1
        assert complete >= len(expected) // 2
        async with cluster(tmp_path / "apart", prefill=1, decode=1, arguments=ARGUMENTS) as made:
            assert await run(made, made.url, 1) == expected
            assert await run(made, made.url, 8) == expected
            loads = await made.metrics(made.of("decode")[0])
            assert loads["kv_loads_total"] > 0
            await made.at_rest()

    (tmp_path / "both").mkdir()
    (tmp_path / "apart").mkdir()
    asyncio.run(body())


def test_a_death_never_shows_in_a_constrained_stream(tmp_path):
    wanted = {"structured_outputs": {"regex": NUMBERS}, "max_tokens": 600, "seed": 7}

    async def body():
        async with cluster(tmp_path, prefill=1, decode=2, arguments=ARGUMENTS) as made:
            expected = await made.generate(made.url, PROMPT, **wanted)
            assert len(expected) > 100
            tokens: list[list[int]] = [[] for _ in range(4)]
            streams = [asyncio.create_task(outcome(made, PROMPT, wanted, t)) for t in tokens]
            await until_flowing(streams, tokens)
            os.kill(made.of("decode")[0].pid, signal.SIGKILL)
            done, pending = await asyncio.wait(streams, timeout=60)
            assert not pending, made.logs()
            whole = 0
            for seen, how in [task.result() for task in done]:
                assert seen == expected[: len(seen)], how
                whole += how == "done" and seen == expected
            assert whole, made.logs()

    asyncio.run(body())


EXPLOSIVE = [
    ("guided_regex", "(" * 3000 + ")" * 3000),
    ("guided_regex", "a" * 9000),
    ("guided_regex", "(?<=a)b"),
    ("guided_grammar", "start: " + "(" * 20000 + '"a"' + ")" * 20000),
    ("guided_json", {"properties": {f"property {i}": {"type": "string"} for i in range(6000)}}),
    ("guided_json", {"not": {"type": "string"}}),
    ("guided_json", {"$ref": "http://127.0.0.1:1/schema"}),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}),
]


def test_explosive_constraints_are_refused_while_a_stream_goes_on(tmp_path):
    """However fast or slow the machine: there is always a stream, until all have been refused."""

    async def body():
        async with cluster(tmp_path, prefill=1, decode=1, arguments=ARGUMENTS) as made:
            await post(made, {"guided_choice": ["warm"]})
            num_tokens = 0

            async def flow():
                nonlocal num_tokens
                while True:
                    long = {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}
                    async for event in made.stream(made.url, PROMPT, **long):
                        assert "error" not in event, event
                        num_tokens += 1

            async def goes_on():
                seen = num_tokens
                while num_tokens < seen + 5:
                    assert not flowing.done(), flowing
                    await asyncio.sleep(0.02)

            flowing = asyncio.create_task(flow())
            num_meanwhile = 0
            for name, value in EXPLOSIVE:
                await asyncio.wait_for(goes_on(), 60)
                before = num_tokens
                status, answer = await asyncio.wait_for(post(made, {name: value}), 60)
                num_meanwhile += num_tokens - before
                assert status == 400, (name, answer)
                assert answer["error"]["param"].startswith(name), answer
                assert name in answer["error"]["message"]
                assert await made.status(f"{made.url}/health") == 200
            await asyncio.wait_for(goes_on(), 60)
            assert num_meanwhile > len(EXPLOSIVE), "no tokens while constraints were looked at"
            status, _ = await post(made, {"guided_choice": ["still", "here"]})
            assert status == 200
            flowing.cancel()
            await asyncio.wait([flowing], timeout=30)

    async def post(made, fields):
        body = {"prompt": "x", "max_tokens": 8, **fields}
        async with made.session.post(f"{made.url}/v1/completions", json=body) as answer:
            return answer.status, await answer.json()

    asyncio.run(body())
