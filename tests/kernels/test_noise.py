import math

import pytest
import torch

from kernels.noise import gumbel, gumbel_at, gumbel_at_torch, gumbel_torch, philox

FACES = [gumbel, gumbel_torch]
ALL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("block", "key", "expected"),
    [  # the known answers published with Random123 for philox4x32, ten rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL,) * 4, (ALL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(block, key, expected):
    words = philox([torch.tensor([k]) for k in key], [torch.tensor([b]) for b in block])
    assert tuple(int(w) for w in words) == expected


def scalar_gumbel(seed, position, token):
    """The definition in plain Python integers and double precision."""
    block = [token // 4, 0, position & ALL, (position >> 32) & ALL]
    key = [seed & ALL, (seed >> 32) & ALL]
    for _ in range(10):
        a, b = 0xD2511F53 * block[0], 0xCD9E8D57 * block[2]
        block = [(b >> 32) ^ block[1] ^ key[0], b & ALL, (a >> 32) ^ block[3] ^ key[1], a & ALL]
        key = [(key[0] + 0x9E3779B9) & ALL, (key[1] + 0xBB67AE85) & ALL]
    word = block[token % 4]
    if word < 1 << 31:
        return -math.log(-math.log((word + 0.5) / 2**32))
    return -math.log(-math.log1p(-(ALL - word + 0.5) / 2**32))


SEEDS = torch.tensor([0, 1, -1, -(2**63), 2**63 - 1, 123456789012345])
POSITIONS = torch.tensor([0, 1, 77, 2**31, 2**40 + 5, 131071])


@pytest.mark.parametrize("face", FACES)
def test_gumbel_is_the_definition(face):
    noise = face(SEEDS, POSITIONS, 103)
    assert noise.dtype == torch.float32
    for row, (seed, position) in enumerate(zip(SEEDS.tolist(), POSITIONS.tolist(), strict=True)):
        exact = torch.tensor([scalar_gumbel(seed, position, t) for t in range(103)])
        torch.testing.assert_close(noise[row], exact, rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("vocab", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 32003])
def test_faces_agree_to_the_last_bit(vocab):
    noise = gumbel(SEEDS, POSITIONS, vocab)
    assert torch.equal(noise, gumbel_torch(SEEDS, POSITIONS, vocab))
    assert torch.equal(noise[2:3], gumbel(SEEDS[2:3], POSITIONS[2:3], vocab))
    assert torch.equal(noise[4], gumbel(SEEDS[4:5], POSITIONS[4:5], vocab + 9)[0, :vocab])


@pytest.mark.parametrize("face", [gumbel_at, gumbel_at_torch])
@pytest.mark.parametrize("count", [1, 16, 41])
def test_candidates_get_the_same_noise(face, count):
    ids = torch.randint(0, 32000, (6, count))
    expected = gumbel(SEEDS, POSITIONS, 32000).gather(1, ids)
    assert torch.equal(face(SEEDS, POSITIONS, ids), expected)


def test_arg_max_of_noisy_logits_samples_the_softmax():
    count = 40000
    noise = gumbel(torch.full((count,), 42), torch.arange(count), 4)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    share = torch.bincount((logits + noise).argmax(-1), minlength=4) / count
    assert (share - logits.softmax(-1)).abs().max() < 0.01


def test_no_correlation_between_rows_positions_and_tokens():
    noise = gumbel(torch.arange(64), torch.zeros(64, dtype=torch.int64), 4096)
    later = gumbel(torch.arange(64), torch.ones(64, dtype=torch.int64), 4096)
    assert abs(float(noise.mean()) - 0.5772) < 0.01
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.02
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.08
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), later.flatten()]))[0, 1])) < 0.01
