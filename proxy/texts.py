"""The text side of the served model: read where an instance says its model lies, and kept."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from common.errors import ConfigError, Unavailable
from common.text import TextModel
from proxy.relay import Fleet

log = logging.getLogger(__name__)

PRELOAD_S = 0.2


class Texts:
    """`texts(model)` for `create_app`. `tokenizer`: a directory that replaces the instances'."""

    def __init__(self, fleet: Fleet, tokenizer: str = "") -> None:
        self._fleet = fleet
        self._tokenizer = tokenizer
        self._loaded: dict[str, TextModel] = {}
        self._failed: set[tuple[str, str]] = set()

    def __call__(self, model: str) -> TextModel:
        """Raises Unavailable if no instance names a directory that can be read here."""
        if model not in self._loaded:
            for path in self._paths(model):
                if self._load(model, path):
                    break
            else:
                raise Unavailable(
                    f"the tokenizer of {model!r} cannot be read here; start the proxy with "
                    "--tokenizer DIR"
                )
        return self._loaded[model]

    async def preload(self) -> None:
        """Read it off the event loop as soon as there is a model. Runs until cancelled."""
        while True:
            model = self._fleet.served_model()
            if model and model not in self._loaded:
                for path in self._paths(model):
                    if (model, path) not in self._failed:
                        await asyncio.to_thread(self._load, model, path)
            await asyncio.sleep(PRELOAD_S)

    def _paths(self, model: str) -> list[str]:
        if self._tokenizer:
            return [self._tokenizer]
        members = self._fleet.membership.members.values()
        return list(dict.fromkeys(m.info.model_path for m in members if m.info.model == model))

    def _load(self, model: str, path: str) -> bool:
        try:
            self._loaded[model] = TextModel.load(Path(path))
        except ConfigError as error:
            if (model, path) not in self._failed and len(self._failed) < 1024:
                self._failed.add((model, path))
                log.warning("the tokenizer of %r cannot be read: %s", model, error.message)
            return False
        return True
