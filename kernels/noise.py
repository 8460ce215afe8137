"""Sampling noise as a pure function of (seed, position, token id): no generator state anywhere.

Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed's
64 bits as key and the counter words (token id // 4, 0, position low, position high); word
`token id % 4` of the result belongs to the token. The 32-bit word becomes u in (0, 1), centred so
that neither end is hit, and the noise is -log(-log(u)).

Equal bits on every device: only integer steps and single float32 additions and multiplications,
each rounded alone (no fused multiply-add, no library logarithm), in the order written here. The
upper half of u is kept as 1 - u, so the large values, which decide, do not get coarse: they reach
22.9.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gpu.choice import triton_serves
from kernels.native_library import library

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

_SQRT_HALF_BITS = 0x3F3504F3
_ONE_BITS = 0x3F800000
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# log(1 + f) = f - f²/2 + f³ P(f) on [√½ - 1, √2 - 1]; Cephes, logf, highest power first
_LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def gumbel(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise [rows, vocab_size] float32 for seeds and positions [rows] int64.

    Equal on every device and in every batch.
    """
    if triton_serves(seeds, positions):
        from kernels.gpu.noise import gumbel_triton

        return gumbel_triton(seeds, positions, vocab_size)
    native = library() if seeds.device.type == "cpu" else None
    if native is None:
        return gumbel_torch(seeds, positions, vocab_size)
    seeds, positions = seeds.contiguous(), positions.contiguous()
    out = torch.empty(len(seeds), vocab_size)
    shape = (len(seeds), vocab_size)
    native.xpyd_gumbel(seeds.data_ptr(), positions.data_ptr(), *shape, out.data_ptr())
    return out


def gumbel_at(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """`gumbel(...)` at token_ids [rows, n] int64 only: [rows, n] float32."""
    if triton_serves(seeds, positions, token_ids):
        from kernels.gpu.noise import gumbel_at_triton

        return gumbel_at_triton(seeds, positions, token_ids)
    native = library() if seeds.device.type == "cpu" else None
    if native is None:
        return gumbel_at_torch(seeds, positions, token_ids)
    seeds, positions, token_ids = (t.contiguous() for t in (seeds, positions, token_ids))
    out = torch.empty(token_ids.shape)
    pointers = (seeds.data_ptr(), positions.data_ptr(), token_ids.data_ptr())
    native.xpyd_gumbel_at(*pointers, *token_ids.shape, out.data_ptr())
    return out


def gumbel_at_torch(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    words = _words(seeds[:, None], positions[:, None], token_ids >> 2)
    return _gumbel_of(words.gather(-1, (token_ids & 3)[..., None])[..., 0])


def gumbel_torch(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    quads = torch.arange(-(-vocab_size // 4), device=seeds.device)[None, :]
    words = _words(seeds[:, None], positions[:, None], quads)
    return _gumbel_of(words.flatten(1)[:, :vocab_size].contiguous())


def _words(seeds: Tensor, positions: Tensor, quads: Tensor) -> Tensor:
    """The four words of each quad of token ids, in a new last dimension."""
    key = [seeds & _MASK, (seeds >> 32) & _MASK]
    zero = torch.zeros_like(quads)
    block = philox(key, [quads, zero, positions & _MASK, (positions >> 32) & _MASK])
    return torch.stack(block, dim=-1)


def philox(key: list[Tensor], block: list[Tensor]) -> list[Tensor]:
    """Two key words and four counter words to four words, each 32 bits in an int64 tensor."""
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], block[0])
        high1, low1 = _multiply(_MULTIPLIERS[1], block[2])
        block = [high1 ^ block[1] ^ key[0], low1, high0 ^ block[3] ^ key[1], low0]
        key = [(k + step) & _MASK for k, step in zip(key, _KEY_STEPS, strict=True)]
    return block


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product, in halves: int64 has no room for it all."""
    upper, lower = constant * (x >> 16), constant * (x & 0xFFFF)
    high = (upper + (lower >> 16)) >> 16
    return high, (((upper & 0xFFFF) << 16) + lower) & _MASK


def _gumbel_of(word: Tensor) -> Tensor:
    is_upper = word >= 1 << 31
    # x is u in the lower half, 1 - u in the upper: (0, 1/2]
    x = (torch.where(is_upper, word ^ _MASK, word).to(torch.int32).float() + 0.5) * 2.0**-32
    f, e = _split(x)
    beyond = x > 0.2928932309150696  # 1 - √½: log(1 - x) = log(2 (1 - x)) - log(2)
    f = torch.where(is_upper, torch.where(beyond, 1.0 - (x + x), -x), f)
    e = torch.where(is_upper, torch.where(beyond, -1.0, 0.0), e)
    return -_log(*_split(-_log(f, e)))


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """x = 2^e (1 + f) with 1 + f in [√½, √2): (f, e), both float32."""
    bits = x.view(torch.int32) + (_ONE_BITS - _SQRT_HALF_BITS)
    mantissa = ((bits & 0x7FFFFF) + _SQRT_HALF_BITS).view(torch.float32)
    return mantissa - 1.0, ((bits >> 23) - 127).float()


def _log(f: Tensor, e: Tensor) -> Tensor:
    square = f * f
    y = torch.full_like(f, _LOG_POLYNOMIAL[0])
    for coefficient in _LOG_POLYNOMIAL[1:]:
        y = y * f + coefficient
    y = y * f * square + e * _LN2_LOW
    y = y - square * 0.5
    return (f + y) + e * _LN2_HIGH
