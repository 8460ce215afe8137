"""What each token of a vocabulary contributes to the text: its bytes, and whether it is special.

Works for byte-level and sentencepiece-style vocabularies, whose decoders act token by token: then
decoding is joining bytes, which is exact and costs the same for every token. Other decoders
(WordPiece, BPE with word suffixes) look at neighbours; there `Vocabulary.is_bytewise` is False.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """The 256 characters that stand for bytes in byte-level vocabularies (GPT-2's mapping)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_level_alphabet()


@dataclass(frozen=True, slots=True)
class _Rules:
    """A decoder that acts token by token. `strip_spaces`: how many leading spaces the text loses;
    `strip_marks`: the first token loses all its word marks."""

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    strip_spaces: int = 0
    strip_marks: bool = False


def _read_rules(spec: dict[str, Any] | None) -> _Rules | None:
    """The rules of a tokenizer.json `decoder` section; None if it is of another kind."""
    steps = spec.get("decoders", [spec]) if spec else []
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return _Rules(byte_level=True)
    byte_fallback = fused = strip_marks = False
    replacements: list[tuple[str, str]] = []
    strip_spaces = 0
    for step in steps:
        kind = step["type"]
        if kind == "Replace" and not fused and "String" in step["pattern"]:
            replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "ByteFallback":
            byte_fallback = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Metaspace" and not fused:
            replacements.append((step["replacement"], " "))
            strip_marks = step.get("prepend_scheme", "always") != "never"
        elif kind == "Strip" and fused and step["content"] == " " and not step["stop"]:
            strip_spaces += step["start"]
        else:
            return None
    if not replacements:
        return None
    return _Rules(False, byte_fallback, tuple(replacements), strip_spaces, strip_marks)


class Vocabulary:
    """Per-token facts of one tokenizer, computed on first use and kept."""

    def __init__(self, tokenizer: Tokenizer, special_tokens: Iterable[str] = ()) -> None:
        """`special_tokens`: further special texts that tokenizer.json does not mark as such."""
        self._tokenizer = tokenizer
        decoder = tokenizer.decoder
        self._rules = _read_rules(json.loads(decoder.__getstate__()) if decoder else None)
        self._bytes: dict[int, bytes] = {}
        added = tokenizer.get_added_tokens_decoder()
        ids = {token_id for token_id, token in added.items() if token.special}
        found = [tokenizer.token_to_id(token) for token in special_tokens]
        ids.update(token_id for token_id in found if token_id is not None)
        self.special_ids: frozenset[int] = frozenset(ids)
        self.size: int = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def is_bytewise(self) -> bool:
        return self._rules is not None

    @property
    def strip_spaces(self) -> int:
        """Spaces that a text loses at its start."""
        return self._rules.strip_spaces if self._rules else 0

    def token(self, token_id: int) -> str:
        """The vocabulary's own spelling (`Ġhello`, `▁hello`, `<0x0A>`); "" for an unused id."""
        return self._tokenizer.id_to_token(token_id) or ""

    def bytes_of(self, token_id: int) -> bytes:
        """What the token adds to a text that has begun; b"" for an unused id."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._compute_bytes(token_id)
        return found

    def first_bytes_of(self, token_id: int) -> bytes:
        """What the token adds at the very start of a text, before `strip_spaces`."""
        if self._rules is None or not self._rules.strip_marks:
            return self.bytes_of(token_id)
        text = self.token(token_id)
        for mark, _ in self._rules.replacements:
            text = text.replace(mark, "")
        return text.encode()

    def text_of(self, token_id: int) -> str:
        """The token alone, as shown beside its log-probability; broken UTF-8 becomes U+FFFD."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def _compute_bytes(self, token_id: int) -> bytes:
        token = self.token(token_id)
        rules = self._rules
        if rules is None:
            return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()
        if rules.byte_level:
            try:
                return bytes([_ALPHABET[character] for character in token])
            except KeyError:  # an added token, spelled as itself
                return token.encode()
        for mark, replacement in rules.replacements:
            token = token.replace(mark, replacement)
        if rules.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.encode()
