"""The status page's document and the JSON behind it, over stand-ins in process."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from common.api.settings import ApiSettings
from common.waterfall import TO_FIRST
from proxy.page import load_page
from tests.proxy.test_server import model_dir as model_dir  # a fixture
from tests.proxy.test_server import proxy, run, standins

ROOT = Path(__file__).parents[2]
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
KEY = {"authorization": "Bearer user"}


def test_the_policy_allows_what_is_in_the_page_and_nothing_else():
    page = load_page()
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
    for kind in ("style", "script"):
        (inside,) = re.findall(f"<{kind}>(.*?)</{kind}>", page.html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert re.findall(r"\son\w+=|\sstyle=|javascript:|innerHTML", page.html) == []
    assert re.findall(r"https?:|//[a-z]+\.", page.html) == []


def test_without_a_key_a_browser_gets_the_empty_page_and_nothing_of_the_fleet(model_dir):
    async def scenario():
        async with proxy(*standins(model_dir), api=ApiSettings(api_keys=("user",))) as (client, *_):
            locked = await client.get("/", headers=BROWSER)
            assert locked.status_code == 401
            assert locked.text == load_page().html
            assert "demo" not in locked.text
            refused = await client.get("/", headers={"accept": "application/json"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                401,
                "invalid_api_key",
            )
            wrong = await client.get("/", headers={**BROWSER, "authorization": "Bearer no"})
            assert wrong.status_code == 401
            assert (await client.get("/", headers={**BROWSER, **KEY})).status_code == 200
            assert (await client.get("/status")).status_code == 401
            assert (await client.get("/status", headers=KEY)).status_code == 200

    run(scenario())


def test_status_tells_latencies_links_and_failures(model_dir):
    async def scenario():
        async with proxy(*standins(model_dir, prefill_s=0.01)) as (client, _, (p, _)):
            body = {"prompt": "secret words", "max_tokens": 8, "temperature": 0}
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == 200
            status = (await client.get("/status")).json()
            recent = status["recent"]
            assert recent["ttft"]["count"] == 1 and recent["itl"]["count"] == 7
            assert recent["ttft"]["p50"] >= 0.009
            assert recent["stages"]["prefill"]["p50"] >= 0.009
            assert {"tokenize", "proxy_queue", "route", "handover"} <= recent["stages"].keys()
            (link,) = status["links"]
            assert (link["prefill"], link["decode"], link["handovers"]) == ("p0", "d0", 1)
            assert status["failures"] == []

            await p.close()
            lost = {"prompt": "secret words", "max_tokens": 8, "stream": True}
            await client.post("/v1/completions", json=lost)
            failures = (await client.get("/status")).json()["failures"]
            assert any(f["what"] == "instance lost" and f["instance"] == "p0" for f in failures)
            assert "secret" not in json.dumps(failures)

    run(scenario())


def test_the_waterfall_is_whole(model_dir):
    """In the header of an answer, and in the last chunk of a stream that shows its usage."""

    async def scenario():
        async with proxy(*standins(model_dir, prefill_s=0.01)) as (client, *_):
            body = {"prompt": "hello", "max_tokens": 6, "temperature": 0}
            answer = await client.post("/v1/completions", json=body)
            header = answer.headers["server-timing"]
            names = re.findall(r"(\w+);dur=", header)
            until_first = [*TO_FIRST, "ttft"]
            assert names[:7] == until_first
            assert {"transfer", "transfer_exposed", "handover"} <= set(names)
            spent = {n: float(ms) for n, ms in re.findall(r"(\w+);dur=([\d.]+)", header)}
            assert spent["prefill"] >= 9.0
            total = sum(spent[name] for name in until_first[:-1])
            assert total == pytest.approx(spent["ttft"], abs=0.01)

            options = {"stream": True, "stream_options": {"include_usage": True}}
            stream = await client.post("/v1/completions", json={**body, **options})
            assert re.findall(r"(\w+);dur=", stream.headers["server-timing"])[:7] == until_first
            events = re.findall(r"^data: (\{.*\})$", stream.text, re.MULTILINE)
            timings = json.loads(events[-1])["timings"]
            assert timings["ttft_ms"] >= 9.0 and timings["kv_blocks"] == 1
            assert {"transfer_ms", "handover_ms"} <= timings.keys()
            assert all("timings" not in json.loads(event) for event in events[:-1])

    run(scenario())


def test_a_wheel_has_the_assets(tmp_path):
    """What setuptools would put into one."""
    setuptools, tomllib = pytest.importorskip("setuptools"), pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    distribution = setuptools.Distribution(
        {
            "packages": ["proxy"],
            "package_dir": {"proxy": str(ROOT / "proxy")},
            "package_data": settings["package-data"],
        }
    )
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    ((_, _, _, names),) = build.data_files
    assert sorted(names) == sorted(
        str(path.relative_to(ROOT / "proxy")) for path in (ROOT / "proxy" / "assets").iterdir()
    )
