import pytest
import torch

from kernels import native_library
from kernels.linear import linear, linear_torch, pack, pack_torch
from kernels.quantize import quantize

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(1, 1), (16, 8), (33, 17), (64, 48), (70, 130), (131, 33), (896, 1152)]  # (in, out)


def public(x, weight, bias=None, out_dtype=None, quantization=None):
    return linear(x, pack(weight, bias, quantization), out_dtype)


def plain_torch(x, weight, bias=None, out_dtype=None, quantization=None):
    return linear_torch(x, pack_torch(weight, bias, quantization), out_dtype or x.dtype)


FACES = [public, plain_torch]


def set_threads(count):
    torch.set_num_threads(count)
    native_library.set_num_threads(count)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = native_library.num_threads()
    yield request.param
    set_threads(before)


def restored(weight):
    numbers, scales = quantize(weight, "int8")
    return numbers.double() * scales.double()[:, None]


def make(rows, shape, dtype):
    generator = torch.Generator().manual_seed(rows + shape[0])
    x = torch.randn(rows, shape[0], generator=generator).to(dtype)
    weight = torch.randn(shape[1], shape[0], generator=generator).to(dtype)
    bias = torch.randn(shape[1], generator=generator).to(dtype)
    return x, weight, bias


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_equals_float64_product(face, dtype, shape, quantization):
    x, weight, bias = make(19, shape, dtype)
    stored = weight.double() if quantization is None else restored(weight)
    exact = x.double() @ stored.T
    bound = x.double().abs() @ stored.abs().T * 2e-6 + 1e-6
    wide = face(x, weight, None, torch.float32, quantization)
    assert wide.dtype == torch.float32
    assert ((wide.double() - exact).abs() <= bound).all()
    rounded = face(x, weight, bias, None, quantization)
    assert rounded.dtype == dtype
    expected = exact + bias.double()
    step = torch.finfo(dtype).eps
    assert ((rounded.double() - expected).abs() <= expected.abs() * step + bound).all()


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_row_does_not_depend_on_other_rows(face, dtype, shape, quantization, threads):
    x, weight, bias = make(300, shape, dtype)
    rest = (weight, bias, None, quantization)
    set_threads(1)
    all_rows = face(x, *rest)
    set_threads(threads)
    for count in (1, 2, 3, 7, 8, 9, 13, 14, 15, 16, 17, 29, 64, 65, 127, 300):
        first = 300 - count
        assert torch.equal(face(x[first:], *rest), all_rows[first:]), count
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:97]
    assert torch.equal(face(x[order], *rest), all_rows[order])


@pytest.mark.parametrize("face", FACES)
def test_wide_result_is_row_invariant_too(face):
    x, weight, _ = make(40, (96, 77), torch.bfloat16)
    all_rows = face(x, weight, out_dtype=torch.float32)
    for i in (0, 5, 39):
        row = face(x[i : i + 1], weight, out_dtype=torch.float32)
        assert torch.equal(row, all_rows[i : i + 1])


def test_strided_and_many_dimensional_input():
    x, weight, bias = make(24, (64, 48), torch.bfloat16)
    packed = pack(weight, bias)
    expected = linear(x, packed)
    assert torch.equal(linear(x.view(2, 3, 4, 64), packed), expected.view(2, 3, 4, 48))
    wider = torch.randn(24, 100).to(torch.bfloat16)
    wider[:, 20:84] = x
    assert torch.equal(linear(wider[:, 20:84], packed), expected)
    assert linear(x[:0], packed).shape == (0, 48)


def test_packed_weight_does_not_share_memory_with_the_original():
    x, weight, bias = make(3, (64, 48), torch.float32)
    packed = pack(weight, bias)
    before = linear(x, packed)
    weight.zero_()
    bias.zero_()
    assert torch.equal(linear(x, packed), before)


def test_wrong_dtype_or_width_is_refused():
    x, weight, _ = make(3, (64, 48), torch.bfloat16)
    with pytest.raises(ValueError, match="the weight wants"):
        linear(x.float(), pack(weight))
    with pytest.raises(ValueError, match="the weight wants"):
        linear(x[:, :63], pack(weight))


def test_quantized_rows_keep_half_a_step_and_zeros_and_what_is_not_finite():
    weight = torch.randn(5000, 40, generator=torch.Generator().manual_seed(0))
    weight[3] = 0.0
    weight[4096, 7] = torch.inf
    weight[4097, 0] = torch.nan
    numbers, scales = quantize(weight, "int8")
    assert numbers.dtype == torch.int8
    assert not numbers[3].any()
    assert scales[3] == 0.0
    sound = torch.isfinite(weight).all(1)
    error = (weight - numbers * scales[:, None])[sound]
    assert (error.abs() <= scales[sound, None] * 0.5001).all()
    assert not torch.isfinite(
        linear(torch.ones(1, 40), pack(weight, None, "int8"))[0, ~sound]
    ).any()


def test_whole_numbers_are_exact_as_int8():
    numbers = torch.arange(-127, 128).float().repeat(3, 1)
    weight = torch.cat([numbers, numbers.flip(1)]).to(torch.bfloat16)
    picks = torch.eye(255, dtype=torch.bfloat16)
    assert torch.equal(linear(picks, pack(weight, None, "int8")), weight.T)
