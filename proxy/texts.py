"""The text side of the served model: read where an instance says its model lies, and kept.

Reading may take seconds (an old tokenizer format is converted), so it happens in a thread, as soon
as there is a model; a request that is faster than that is asked to try again.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from common.errors import ConfigError, Unavailable
from common.text import TextModel
from proxy.relay import Fleet

log = logging.getLogger(__name__)

LOOK_S = 0.1


class Texts:
    """`texts(model)` for `create_app`. `tokenizer`: a directory that replaces the instances'."""

    def __init__(self, fleet: Fleet, tokenizer: str = "") -> None:
        self._fleet = fleet
        self._tokenizer = tokenizer
        self._loaded: dict[str, TextModel] = {}
        self._failed: dict[tuple[str, str], str] = {}  # (model, path): why

    def __call__(self, model: str) -> TextModel:
        """Raises Unavailable while it is not there."""
        if model in self._loaded:
            return self._loaded[model]
        if all((model, path) in self._failed for path in self._paths(model)):
            raise Unavailable(
                f"the tokenizer of {model!r} cannot be read here; start the proxy with "
                "--tokenizer DIR"
            )
        raise Unavailable(f"the tokenizer of {model!r} is being read; try again")

    def is_loaded(self) -> bool:
        return self._fleet.served_model() in self._loaded

    async def keep_loaded(self) -> None:
        """Read the served model's, whichever that is. Runs until cancelled."""
        while True:
            model = self._fleet.served_model()
            for path in self._paths(model):
                if model not in self._loaded and (model, path) not in self._failed:
                    await asyncio.to_thread(self._load, model, path)
            await asyncio.sleep(LOOK_S)

    def _paths(self, model: str) -> list[str]:
        members = self._fleet.membership.members.values()
        paths = [m.info.model_path for m in members if m.info.model == model]
        if self._tokenizer and paths:
            return [self._tokenizer]
        return list(dict.fromkeys(paths))

    def _load(self, model: str, path: str) -> None:
        try:
            if not Path(path).is_dir():
                raise ConfigError("no such directory on this machine")
            self._loaded[model] = TextModel.load(Path(path))
        except ConfigError as error:
            if len(self._failed) < 1024:
                self._failed[model, path] = error.message
                log.warning("the tokenizer of %r cannot be read: %s", model, error.message)
