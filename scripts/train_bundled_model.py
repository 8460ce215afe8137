"""Train the bundled demonstration model from nothing and write models/xpyd-demo.

    python -m scripts.train_bundled_model --steps 4000

Composes its own text, learns a tokenizer from it, trains a small Llama on the CPU, measures it on
phrasings it never saw, and only then replaces the output directory's model files.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from random import Random

import torch

from scripts.bundled_model.documents import tokenizer_texts
from scripts.bundled_model.evaluate import accuracy_table
from scripts.bundled_model.export import save_checkpoint
from scripts.bundled_model.initialise import initialise
from scripts.bundled_model.network import Network, NetworkShape
from scripts.bundled_model.readme import readme
from scripts.bundled_model.tokenizer import train_tokenizer
from scripts.bundled_model.train import Plan, train

DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "models" / "xpyd-demo"
TOKENIZER_SAMPLES = 6000


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="train this many steps; reproducible")
    parser.add_argument("--minutes", type=float, default=40.0, help="else train this long")
    parser.add_argument("--threads", type=int, default=1, help="threads of the matrix products")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    return parser.parse_args()


def replace_files(source: Path, target: Path) -> None:
    """Move every file of source into target, each by one rename on target's disk."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        path.chmod(0o644)
        os.replace(path, target / path.name)


def main() -> None:
    """Train, measure, write."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    shape = NetworkShape()
    texts = tokenizer_texts(Random(arguments.seed), TOKENIZER_SAMPLES)
    tokenizer = train_tokenizer(texts, shape.vocab_size)
    network = Network(shape)
    initialise(network)
    print(f"{sum(p.numel() for p in network.parameters())} parameters", flush=True)

    started = time.monotonic()
    plan = Plan(arguments.seed, arguments.steps, arguments.minutes)
    steps = train(network, tokenizer, plan)
    minutes = (time.monotonic() - started) / 60
    print(f"{steps} steps in {minutes:.1f} minutes", flush=True)
    table = accuracy_table(network, tokenizer)
    print(table, flush=True)

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".bundled-model-", dir=arguments.output.parent))
    try:
        save_checkpoint(network, tokenizer, staging)
        text = readme(arguments.seed, steps, minutes, arguments.threads, table)
        (staging / "README.md").write_text(text, encoding="utf-8")
        replace_files(staging, arguments.output)
    finally:
        shutil.rmtree(staging)
    print(f"wrote {arguments.output}", flush=True)


if __name__ == "__main__":
    main()
