"""What the proxy costs per token: CPU seconds of its process over stand-in instances.

    python -m benchmarks.proxy_overhead --streams 64 --tokens 500

The stand-ins make tokens at a fixed pace, so the figure is the proxy's own work (links, relay,
detokenizer, SSE, HTTP), not queueing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import uvloop

MODEL = Path(__file__).parents[1] / "models" / "xpyd-demo"
PROMPT = "Tell me something about the sea."
_PROXY = (
    "import sys; from proxy.server import ProxySettings, run; sys.exit(run(ProxySettings("
    "port=int(sys.argv[1]), registry_port=None, prefill=(sys.argv[2],), decode=(sys.argv[3],))))"
)


def start_standin(role: str, step_s: float) -> tuple[subprocess.Popen[str], str]:
    """The process and its host:port."""
    command = [sys.executable, "-m", "benchmarks.standin_instance", "--role", role]
    options = ["--step-s", str(step_s), "--model-path", str(MODEL), "--model", "demo"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def stream_one(session: aiohttp.ClientSession, url: str, num_tokens: int) -> int:
    body = {"prompt": PROMPT, "max_tokens": num_tokens, "temperature": 0, "stream": True}
    count = 0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for chunk in response.content.iter_any():
            count += chunk.count(b"data: ")
    return count


async def measure(url: str, pid: int, streams: int, tokens: int) -> tuple[float, float]:
    """(proxy CPU seconds, wall seconds) for all streams."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        while True:
            try:
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        await asyncio.gather(*(stream_one(session, url, 20) for _ in range(streams)))
        cpu, wall = cpu_seconds(pid), time.monotonic()
        await asyncio.gather(*(stream_one(session, url, tokens) for _ in range(streams)))
        return cpu_seconds(pid) - cpu, time.monotonic() - wall


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU cost of the proxy per token.")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=500, help="per stream")
    parser.add_argument("--step-s", type=float, default=0.02, help="pace of the stand-ins")
    options = parser.parse_args()
    processes: list[subprocess.Popen[str]] = []
    try:
        prefill, prefill_at = start_standin("prefill", options.step_s)
        processes.append(prefill)
        decode, decode_at = start_standin("decode", options.step_s)
        processes.append(decode)
        port = free_port()
        command = [sys.executable, "-c", _PROXY, str(port), prefill_at, decode_at]
        proxy = subprocess.Popen(command, text=True)
        processes.append(proxy)
        cpu_s, wall_s = uvloop.run(
            measure(f"http://127.0.0.1:{port}", proxy.pid, options.streams, options.tokens)
        )
    finally:
        for process in processes:
            process.kill()
            process.wait()
    num_tokens = options.streams * options.tokens
    result = {
        "streams": options.streams,
        "tokens": num_tokens,
        "wall_s": round(wall_s, 2),
        "proxy_cpu_s": round(cpu_s, 2),
        "cpu_us_per_token": round(cpu_s / num_tokens * 1e6, 1),
        "tokens_per_core_second": round(num_tokens / cpu_s),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
