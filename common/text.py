"""A model's text side: tokenizer, chat template, detokenizer. No torch, quick to import.

    text = TextModel.load(Path("models/xpyd-demo"))
    prompt = text.render_chat([{"role": "user", "content": "Hi"}])
    ids = text.encode(prompt, add_special_tokens=False)

Text that spells a special token (`<|im_end|>`) becomes that token when encoded, in user content
too, as it does in Hugging Face's chat templates.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.chat_template import ChatTemplate, TemplateRefused
from common.detokenizer import BytewiseDetokenizer, IncrementalDetokenizer, WindowDetokenizer
from common.errors import BadRequest, ConfigError
from common.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_NOTHING: frozenset[int] = frozenset()
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class TextModel:
    """Immutable and safe to share between threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        templates: dict[str, str] | None = None,
        special_tokens: dict[str, str] | None = None,
        vocab_size: int | None = None,
        sampling_defaults: dict[str, float] | None = None,
    ) -> None:
        """`templates`: chat templates by name ("default", "tool_use"). `vocab_size`: the model's,
        which may be padded beyond the tokenizer's. Raises TemplateRefused."""
        self.tokenizer = tokenizer
        self.special_tokens = dict(special_tokens or {})
        self.vocabulary = Vocabulary(tokenizer, self.special_tokens.values())
        self.vocab_size = max(self.vocabulary.size, vocab_size or 0)
        self.sampling_defaults = dict(sampling_defaults or {})  # of the model's authors
        self._templates = {
            name: ChatTemplate(source, self.special_tokens)
            for name, source in (templates or {}).items()
        }
        for template in self._templates.values():
            template.probe()

    @classmethod
    def load(cls, path: Path | str) -> TextModel:
        """Read a Hugging Face directory. Raises ConfigError with one line if it cannot be used."""
        path = Path(path)
        config = _read_json(path / "tokenizer_config.json")
        try:
            return cls(
                _load_tokenizer(path),
                templates=_read_templates(path, config),
                special_tokens=_read_special_tokens(path, config),
                vocab_size=_read_vocab_size(path),
                sampling_defaults=read_sampling_defaults(path),
            )
        except TemplateRefused as error:
            raise ConfigError(f"the model's chat template {error}") from None

    # --- text and tokens -------------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Lets other threads run meanwhile, as `Tokenizer.encode` does not: that one held them up
        for a second per MB of text, and took twice as long for offsets that nobody reads."""
        encoded = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded[0].ids
        return ids

    def encode_pair(self, first: str, second: str) -> list[int]:
        """As one sequence, as the tokenizer joins two."""
        encoded = self.tokenizer.encode_batch_fast([(first, second)], add_special_tokens=True)
        ids: list[int] = encoded[0].ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The same text as pushing every token into a fresh detokenizer."""
        detokenizer = self.detokenizer((), skip_special_tokens=skip_special_tokens)
        return "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()

    def detokenizer(
        self,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        shown: frozenset[int] = _NOTHING,
    ) -> IncrementalDetokenizer:
        """For the answer to this prompt. `shown`: special tokens that are not skipped."""
        skip = self.vocabulary.special_ids - shown if skip_special_tokens else _NOTHING
        if self.vocabulary.is_bytewise:
            return BytewiseDetokenizer(self.vocabulary, prompt_token_ids, skip)
        return WindowDetokenizer(self.tokenizer, prompt_token_ids, skip)

    # --- chat ------------------------------------------------------------------------------------

    @property
    def has_chat_template(self) -> bool:
        return "default" in self._templates

    def chat_template(self, *, with_tools: bool = False) -> ChatTemplate:
        """The template that serves such a conversation. Raises BadRequest if there is none."""
        names = ("tool_use", "default") if with_tools else ("default",)
        for name in names:
            if name in self._templates:
                return self._templates[name]
        raise BadRequest("this model has no chat template; use /v1/completions", "messages")

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> str:
        """`options` as `ChatTemplate.render` takes them."""
        template = self.chat_template(with_tools=bool(tools))
        return template.render(messages, tools=tools, **options)


def tokenizer_json(path: Path) -> str:
    """The tokenizer of a model directory as the text of a tokenizer.json. Raises ConfigError."""
    text: str = _load_tokenizer(path).to_str()
    return text


# --- reading a model directory -------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    """{} if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} is not a JSON object")
    return content


def _load_tokenizer(path: Path) -> Tokenizer:
    file = path / "tokenizer.json"
    if not file.is_file():
        return _convert_tokenizer(path)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"tokenizer.json cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _convert_tokenizer(path: Path) -> Tokenizer:
    """Old formats (vocab.json and merges.txt, sentencepiece) go through transformers, once."""
    try:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        tokenizer: Tokenizer = loaded.backend_tokenizer
    except Exception as error:
        raise ConfigError(f"no usable tokenizer in {path.name!r}: {error}") from None
    return tokenizer


def _read_templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    found = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(found, str):
        templates["default"] = found
    elif isinstance(found, list):
        templates.update({entry["name"]: entry["template"] for entry in found})
    if "default" not in templates and (more := _read_json(path / "chat_template.json")):
        templates["default"] = more["chat_template"]
    if (file := path / "chat_template.jinja").is_file():
        templates["default"] = file.read_text(encoding="utf-8")
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    return templates


def _read_special_tokens(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token … as templates see them, wherever this model's files keep them."""
    merged = {**_read_json(path / "special_tokens_map.json"), **config}
    tokens: dict[str, str] = {}
    for name in _SPECIAL_NAMES:
        entry = merged.get(name)
        content = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _read_vocab_size(path: Path) -> int | None:
    config = _read_json(path / "config.json")
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    return size if isinstance(size, int) else None


def read_sampling_defaults(path: Path) -> dict[str, float]:
    """Of generation_config.json, as far as we know them; {} if there is no such file."""
    config = _read_json(path / "generation_config.json")
    found = {name: config.get(name) for name in _SAMPLING_DEFAULTS}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}
