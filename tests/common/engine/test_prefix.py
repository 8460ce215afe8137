from __future__ import annotations

import numpy as np

from common.engine.prefix import PrefixHasher

TOKENS = list(range(10))


def chain(tokens=TOKENS, salt="", fingerprint="m", block_size=4):
    return PrefixHasher(fingerprint, block_size).full_blocks(tokens, salt)


def test_only_full_blocks_have_a_name():
    assert [len(chain(TOKENS[:n])) for n in (0, 3, 4, 7, 8, 10)] == [0, 0, 1, 1, 2, 2]


def test_a_digest_stands_for_the_whole_prefix():
    other = [99, *TOKENS[1:]]
    assert chain(other)[1] != chain()[1], "same second block, other first"
    assert chain([*TOKENS[:4], 99, 5, 6, 7])[0] == chain()[0]


def test_salt_model_and_block_size_separate():
    variants = [chain(), chain(salt="tenant"), chain(fingerprint="n"), chain(block_size=8)]
    assert len({digests[0] for digests in variants}) == 4


def test_salt_cannot_imitate_a_fingerprint():
    assert chain(fingerprint="ab", salt="c")[0] != chain(fingerprint="a", salt="bc")[0]


def test_growing_step_by_step_gives_the_same_chain():
    hasher = PrefixHasher("m", 4)
    tokens = np.array(TOKENS, dtype="<i8")
    digests: list[bytes] = []
    for num_tokens in range(len(TOKENS) + 1):
        hasher.extend(digests, tokens, num_tokens, "")
    assert digests == chain()


def test_the_partial_block_has_its_own_name():
    hasher = PrefixHasher("m", 4)
    tokens = np.array(TOKENS, dtype="<i8")
    names = {hasher.partial(chain(), tokens, n, "") for n in (9, 10)}
    assert len(names) == 2
    assert not names & set(chain())
    assert hasher.partial([], tokens, 3, "a") != hasher.partial([], tokens, 3, "b")
