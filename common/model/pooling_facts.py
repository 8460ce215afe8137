"""How a model turns a text into one vector, as its files say: the directory of an embedding model
as sentence-transformers writes it, or the head of a classifier. Reads no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.model.config_json import ConfigJson
from common.model.spec import Pooling, PoolingMethod

MAX_LABEL_CHARS = 16 << 10  # every instance tells its proxies of them
_MODULES = "modules.json"
_METHODS: dict[str, PoolingMethod] = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
_DONE_HERE = ("Transformer", "Pooling", "Normalize")


def read_embedding(path: Path, config: ConfigJson) -> Pooling:
    """Without files of sentence-transformers: the last token's vector, of length 1."""
    can_shorten = config.flag("is_matryoshka", False) or config.has("matryoshka_dimensions")
    modules = _modules(path)
    if not modules:
        return Pooling("last", is_normalized=True, can_shorten=can_shorten)
    kinds = [kind for kind, _ in modules]
    if unknown := [kind for kind in kinds if kind not in _DONE_HERE]:
        raise ConfigError(f"{_MODULES}: a module of type {unknown[0]} is not supported")
    method: PoolingMethod = "mean"  # sentence-transformers' default
    for kind, directory in modules:
        if kind == "Pooling":
            method = _method(ConfigJson.read(path / directory / "config.json"))
    return Pooling(method, is_normalized="Normalize" in kinds, can_shorten=can_shorten)


def read_classifier(config: ConfigJson) -> Pooling:
    """The last token's scores, one for each label."""
    named = config.table("id2label").values if config.has("id2label") else {}
    count = len(named) or config.integer("num_labels", 2)
    labels = tuple(str(named.get(str(n), f"LABEL_{n}")) for n in range(min(count, MAX_LABEL_CHARS)))
    if sum(map(len, labels)) > MAX_LABEL_CHARS:
        raise config.error("id2label", f"may have {MAX_LABEL_CHARS} characters in all")
    return Pooling("last", is_normalized=False, labels=labels)


def _method(config: ConfigJson) -> PoolingMethod:
    chosen = [name for name in config.values if name.startswith("pooling_mode_")]
    chosen = [name for name in chosen if config.flag(name, False)]
    if len(chosen) != 1 or chosen[0] not in _METHODS:
        raise config.error(
            "pooling_mode", f"must be one of {', '.join(_METHODS)}, not {' and '.join(chosen)}"
        )
    return _METHODS[chosen[0]]


def _modules(path: Path) -> list[tuple[str, str]]:
    """(last part of the type, directory) of each; [] if there is no such file."""
    file = path / _MODULES
    if not file.is_file():
        return []
    try:
        listed: Any = json.loads(file.read_text(encoding="utf-8"))
        found = [(str(each["type"]).rpartition(".")[2], str(each["path"])) for each in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{_MODULES} cannot be read: {error}") from None
    for _, directory in found:
        if directory and (Path(directory).name != directory or directory == ".."):
            raise ConfigError(f"{_MODULES}: {directory} does not lie beside it")
    return found
