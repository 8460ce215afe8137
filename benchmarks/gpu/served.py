"""1P1D on one GPU through nixl: a 1B-shape model served by the real launcher, and measured.

The tokens of a one-instance deployment are the reference for those of the pair.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 3072,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
    "bos_token_id": 1,
}
PORT = 18700
INSTANCE = ("--device", "cuda", "--load-format", "dummy", "--max-model-len", "8192")
MEMORY = ("--kv-cache-memory", "8GiB", "--max-num-batched-tokens", "4096", "--batch-invariant")
READY_S = 150.0


def make_model(root: Path, directory: Path) -> None:
    """The shape above, with the bundled model's tokenizer."""
    for path in (root / "models" / "xpyd-demo").iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special")):
            shutil.copy(path, directory)
    (directory / "config.json").write_text(json.dumps(CONFIG))


@contextlib.contextmanager
def running(root: Path, arguments: tuple[str, ...], log: Path) -> Iterator[str]:
    """The URL of what `xpyd ARGUMENTS` serves; it is stopped at the end."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.cli", *arguments],
            cwd=root,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{PORT}"
        try:
            _wait_ready(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"no service: {log.read_text()[-2000:]}")


def complete(url: str, prompt: list[int], num_tokens: int) -> list[int]:
    body = {
        "model": "model",
        "prompt": prompt,
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        tokens: list[int] = json.load(answer)["choices"][0]["token_ids"]
        return tokens


def bench(root: Path, url: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.cli", "bench", "serve", "--base-url", url]
    command += ["--num-prompts", "64", "--input-len", "1024", "--output-len", "128"]
    command += ["--max-concurrency", "16", "--result-file", str(out)]
    subprocess.run(command, cwd=root, check=True, timeout=120)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def serve_pair(root: Path, left_s: float) -> Iterator[tuple[str, str, str]]:
    """(name, value, note) rows."""
    if left_s < 60:
        yield "1P1D on one GPU", "left out", "no time left"
        return
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        model = home / "model"
        model.mkdir()
        make_model(root, model)
        prompts = [[(7 * i + j) % 3000 + 3 for j in range(n)] for i, n in enumerate((5, 300, 2000))]
        port = ("--port", str(PORT))
        both: tuple[str, ...] = ("serve", str(model), "--role", "both", *port, *INSTANCE, *MEMORY)
        with running(root, both, home / "both.log") as url:
            expected = [complete(url, prompt, 32) for prompt in prompts]
        places = ("--topology-file", str(home / "topology.json"), "--log-dir", str(home / "logs"))
        pair: tuple[str, ...] = ("up", "--model", str(model), "--connector", "nixl", *port, *places)
        pair += ("--prefill-gpus", "0", "--decode-gpus", "0", "--", *INSTANCE, *MEMORY)
        with running(root, pair, home / "pair.log") as url:
            tokens = [complete(url, prompt, 32) for prompt in prompts]
            same = sum(a == b for a, b in zip(tokens, expected, strict=True))
            is_right = same == len(prompts)
            yield "1P1D through nixl: same tokens", f"{same} of 3", "" if is_right else "FAILED"
            summary = bench(root, url, home / "bench.json")
        for key in ("median_ttft_ms", "p99_ttft_ms", "median_itl_ms", "p99_itl_ms"):
            if key in summary:
                yield f"1P1D, 1B shape, {key}", f"{summary[key]:.1f} ms", "1024 in, 128 out, 16"
