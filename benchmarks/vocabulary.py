"""Which token ids a random prompt may hold, and how to turn them into text. Knows no data set and
no server.

Two kinds: `IdVocabulary` needs only a size, `TokenizerVocabulary` reads a tokenizer.json.
"""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from common.errors import ConfigError

# Ids below this are left out when no tokenizer says what they are: special tokens usually live
# there.
_FIRST_ID = 16
_LETTERS = "etaoinshrdlu"
_FIT_ROUNDS = 8


class Vocabulary(Protocol):
    def draw(self, random: np.random.Generator, count: int) -> list[int]:
        """`count` random ordinary token ids."""
        ...

    def text_of(self, ids: list[int]) -> str:
        """Text that has as many tokens as `ids`, as nearly as this vocabulary can."""
        ...

    def count(self, text: str) -> int | None:
        """Tokens in `text`, or None when unknown."""
        ...


class IdVocabulary:
    """Ids 16 to `size`, with made-up three-letter words for text: one to three tokens each with
    common tokenizers.
    """

    def __init__(self, size: int) -> None:
        if size <= _FIRST_ID:
            raise ConfigError(f"--vocab-size must be greater than {_FIRST_ID}")
        self._size = size

    def draw(self, random: np.random.Generator, count: int) -> list[int]:
        return [int(i) for i in random.integers(_FIRST_ID, self._size, size=count)]

    def text_of(self, ids: list[int]) -> str:
        return " ".join(_word(i) for i in ids)

    def count(self, text: str) -> int | None:
        return None


class TokenizerVocabulary:
    """Every id of a tokenizer except its special tokens; text is checked by encoding it again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        known = sorted(set(tokenizer.get_vocab(with_added_tokens=True).values()) - special)
        if not known:
            raise ConfigError("--tokenizer has no ordinary tokens")
        self._ids = np.array(known)

    @classmethod
    def load(cls, path: Path) -> TokenizerVocabulary:
        """`path` is a tokenizer.json or the directory that holds one."""
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read --tokenizer: {error}") from error
        try:
            return cls(Tokenizer.from_str(text))
        except ConfigError:
            raise
        except Exception as error:  # the Rust side raises plain Exception
            raise ConfigError(f"--tokenizer is not a tokenizer.json: {error}") from error

    def draw(self, random: np.random.Generator, count: int) -> list[int]:
        return [int(i) for i in random.choice(self._ids, size=count)]

    def text_of(self, ids: list[int]) -> str:
        """Decoding and encoding again merges and splits tokens: cut or lengthen until it fits."""
        wanted = list(ids)
        for _ in range(_FIT_ROUNDS):
            # Halves of characters, which random ids and cuts leave, would never settle.
            text = self._decode(wanted).replace("\ufffd", "")
            again = self._encode(text)
            if len(again) == len(ids):
                break
            wanted = list(islice(cycle(again or ids), len(ids)))
        return text

    def count(self, text: str) -> int | None:
        return len(self._encode(text))

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _word(token: int) -> str:
    """A word of at least three letters; different ids give different words."""
    letters = ""
    while token or len(letters) < 3:
        token, digit = divmod(token, len(_LETTERS))
        letters += _LETTERS[digit]
    return letters
