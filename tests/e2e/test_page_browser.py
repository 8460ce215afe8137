"""The status page in a real browser: Debian's chromium, if there is one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil

import pytest
import uvicorn

from benchmarks.standin_instance import Standin, StandinInstance
from common.api.settings import ApiSettings
from proxy.server import ProxySettings, build_app, build_fleet
from tests.ports import free_port
from tests.proxy.fleet_of_standins import until
from tests.proxy.test_server import model_dir as model_dir  # a fixture

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
WAIT_MS = 60_000.0
EVIL = "<img src=x onerror=document.title='owned'><b>d0</b>"


@contextlib.asynccontextmanager
async def site(*configs, **settings):
    """A proxy over stand-ins in this loop, with a real port; yields (url, fleet)."""
    instances = [StandinInstance(config) for config in configs]
    for instance in instances:
        await instance.start()
    addresses = tuple(instance.address for instance in instances)
    chosen = ProxySettings(prefill=addresses, registry_port=None, **settings)
    fleet = build_fleet(chosen)
    fleet.start()
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(build_app(chosen, fleet), port=port, log_config=None, lifespan="on")
    )
    serving = asyncio.create_task(server.serve())
    try:
        members = fleet.membership.members
        await until(lambda: sum(m.is_connected for m in members.values()) == len(instances), 60)
        await until(lambda: server.started, 60)
        yield f"http://127.0.0.1:{port}", fleet
    finally:
        server.should_exit = True
        await serving
        await fleet.close()
        for instance in instances:
            await instance.close()


@contextlib.asynccontextmanager
async def browser_page(**options):
    """Yields (page, complaints): what the page asks of others, logs or throws is a complaint."""
    complaints: list[str] = []
    async with playwright.async_playwright() as tool:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = await tool.chromium.launch(
            executable_path=CHROMIUM, args=arguments, timeout=WAIT_MS
        )
        try:
            page = await browser.new_page(**options)
            page.set_default_timeout(WAIT_MS)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.append(said.text))
            yield page, complaints
        finally:
            await browser.close()


def standin(role, name, model_dir):
    return Standin(role, name, model="demo", model_path=str(model_dir), first_id=0)


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 240))


async def is_wider_than_screen(page):
    return await page.evaluate("document.documentElement.scrollWidth > innerWidth")


def test_topology_and_failures_are_live_and_names_are_text(model_dir):
    configs = [standin("prefill", "p0", model_dir), standin("decode", EVIL, model_dir)]

    async def scenario():
        async with site(*configs) as (url, fleet), browser_page() as (page, complaints):
            await page.goto(url)
            await page.wait_for_selector("#instances tbody tr:nth-child(2)")
            await page.get_by_text("1P1D", exact=True).wait_for()
            assert await page.title() == "1P1D · xpyd"
            names = await page.locator("#instances tbody th").all_text_contents()
            assert sorted(names) == sorted(["p0", EVIL])
            assert await page.locator("#main img, #main b b").count() == 0
            fleet.membership.drain("p0")
            await page.wait_for_selector(".s-draining")
            fleet.failures.note(1.0, "attempt failed", EVIL, instance="p0", request_id="r1")
            await page.wait_for_selector("#failures .what")
            assert EVIL in await page.locator("#failures").text_content()
            assert await page.title() == "0P1D · xpyd"
            assert complaints == []

    run(scenario())


def test_it_asks_for_the_key_and_keeps_it(model_dir):
    async def scenario():
        keys = ApiSettings(api_keys=("user",))
        async with (
            site(standin("both", "instance-7", model_dir), api=keys) as (url, _),
            browser_page() as (
                page,
                complaints,
            ),
        ):
            answer = await page.goto(url)
            assert answer.status == 401
            await page.wait_for_selector("#key-form:not([hidden])")
            assert "instance-7" not in await page.content()
            await page.fill("#key", "wrong")
            await page.press("#key", "Enter")
            await page.get_by_text("That key was refused").wait_for()
            await page.fill("#key", "user")
            await page.press("#key", "Enter")
            await page.wait_for_selector("#instances tbody tr")
            await page.reload()
            await page.wait_for_selector("#instances tbody tr")
            assert await page.locator("#key-form").is_hidden()
            assert all("401" in text for text in complaints)  # chromium logs each of them

    run(scenario())


@pytest.mark.parametrize("count", [0, 1, 40])
def test_it_is_readable_with_any_number_of_instances_on_any_screen(model_dir, count):
    roles = ["both"] if count == 1 else ["prefill", "decode"] * (count // 2)
    configs = [standin(role, f"{role}-{n:02}", model_dir) for n, role in enumerate(roles)]

    async def scenario():
        async with site(*configs) as (url, _), browser_page() as (page, complaints):
            for scheme, width in (("light", 1366), ("dark", 390)):
                await page.emulate_media(color_scheme=scheme)
                await page.set_viewport_size({"width": width, "height": 800})
                await page.goto(url)
                await page.wait_for_selector("#main:not([hidden])")
                if count:
                    await page.wait_for_selector(f"#instances tbody tr:nth-child({count})")
                assert not await is_wider_than_screen(page)
                shown = await page.locator(".node:visible").count()
                assert shown == count
            assert complaints == []

    run(scenario())
