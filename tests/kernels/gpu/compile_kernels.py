"""Compile every Triton kernel for one GPU generation, without a GPU; one line each.

python tests/kernels/gpu/compile_kernels.py 90
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.gpu import (
    activation,
    attention,
    attention_kernels,
    linear,
    noise,
    norm,
    rope,
    truncation,
)

POINTERS = {
    "tables_ptr": "*i32", "starts_ptr": "*i32", "contexts_ptr": "*i32", "parts_ptr": "*fp32",
    "cos_ptr": "*fp32", "sin_ptr": "*fp32", "positions_ptr": "*i64", "slots_ptr": "*i64",
    "seeds_ptr": "*i64", "tokens_ptr": "*i64", "bias_ptr": "*fp32", "scale_ptr": "*fp32",
    "min_p_ptr": "*fp32", "top_k_ptr": "*i64", "top_p_ptr": "*fp32",
}  # fmt: skip
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # that one program may have
NARROW = {"k_ptr", "v_ptr", "k_cache_ptr", "v_cache_ptr", "cache_ptr", "weight_ptr"}
FP8 = "fp8e4nv"  # from compute capability 8.9 on
# Strides and sizes that are multiples of 16 in every real model.
ALIGNED = (
    "stride_",
    "q_",
    "k_",
    "v_",
    "out_",
    "cache_",
    "x_",
    "weight_",
    "num_inputs",
    "part_inputs",
    "dim",
)
FLOATS = {"scale", "softcap", "eps"}
HEAD = {
    "GROUP": 4, "KEYS": 64, "SPLIT_KEYS": attention.SPLIT, "BLOCK_SIZE": 32, "DIM": 128,
    "DIM_PADDED": 128, "WINDOW": 0, "HAS_SOFTCAP": False, "PRECISION": "tf32",
}  # fmt: skip


def cases():
    """(kernel, constants, element type of the other pointers, options)"""
    for tile, mode in ((attention.PREFILL, False), (attention.INVARIANT, True)):
        shape = {"TOKENS": tile.rows // 4, "ROWS": tile.rows, "IS_INVARIANT": mode}
        options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
        yield attention_kernels.prefill_kernel, {**HEAD, **shape}, "bf16", options
        yield attention_kernels.prefill_kernel, {**HEAD, **shape, "WINDOW": 512}, "bf16", options
    for tile, mode in ((attention.DECODE, False), (attention.INVARIANT, True)):
        shape = {"ROWS": tile.rows, "IS_INVARIANT": mode}
        options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
        yield attention_kernels.decode_kernel, {**HEAD, **shape}, "bf16", options
        yield (
            attention_kernels.combine_kernel,
            {**HEAD, "IS_INVARIANT": mode},
            "bf16",
            {"num_warps": 1},
        )
    product, options = product_case(linear.INVARIANT)
    yield linear._linear, {**product, "HAS_SCALES": False, "HAS_BIAS": True}, "bf16", options
    yield norm._rms_norm, {"ADDS": True, "BLOCK": 4096}, "bf16", {"num_warps": 8}
    yield activation._silu_mul, {"BLOCK": 1024}, "bf16", {}
    heads = {"Q_HEADS": 32, "KV_HEADS": 8, "K_HEADS": 8, "HALF": 64, "DIM": 128}
    for kernel in (rope._rope, rope._rope_store, rope._store_kv):
        yield kernel, heads, "bf16", {}
    yield noise._gumbel, {"BLOCK": 1024}, "fp32", {"enable_fp_fusion": False}
    yield noise._gumbel_at, {"BLOCK": 256}, "fp32", {"enable_fp_fusion": False}
    yield truncation._cut_off, {"BLOCK": 4096}, "fp32", {"num_warps": 8}


def product_case(tile):
    shape = {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "INPUTS": tile.inputs}
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return {**shape, "GROUP": 8, "PRECISION": "tf32"}, options


def eight_bit_cases(element):
    """The kernels that read or fill 8 bits of that kind: (kernel, constants, options)"""
    for tile in linear.NARROW_TILES[:: 1 if element == "i8" else 4]:
        product, options = product_case(tile)
        yield linear._linear, {**product, "HAS_SCALES": True, "HAS_BIAS": True}, options
    if element == "i8":
        return
    for kernel, shape in (
        (attention_kernels.decode_kernel, attention.DECODE),
        (attention_kernels.prefill_kernel, attention.PREFILL),
    ):
        sizes = {"ROWS": shape.rows, "TOKENS": shape.rows // 4, "IS_INVARIANT": False}
        options = {"num_warps": shape.num_warps, "num_stages": shape.num_stages}
        yield kernel, {**HEAD, **sizes}, options
    heads = {"Q_HEADS": 32, "KV_HEADS": 8, "HALF": 64, "DIM": 128}
    yield rope._rope_store, heads, {}
    yield rope._store_kv, heads, {}


def compiled(kernel, constants, element, options, capability, cache=""):
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            narrow = cache if name in NARROW and is_narrow(kernel, name) else ""
            signature[name] = POINTERS.get(name, f"*{narrow or element}")
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name.startswith(ALIGNED)
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def is_narrow(kernel, name):
    """In rope.py k_ptr and v_ptr are the new keys and values, not the cache."""
    return "cache" in name or "k_cache_ptr" not in kernel.arg_names


def main():
    capability = int(sys.argv[1])
    for kernel, constants, element, options in cases():
        binary = compiled(kernel, constants, element, options, capability)
        ptx = binary.asm["ptx"]
        units = "wgmma" if "wgmma" in ptx else "mma" if "mma.sync" in ptx else ""
        uses_dot = kernel in (
            attention_kernels.prefill_kernel,
            attention_kernels.decode_kernel,
            linear._linear,
        )
        products = f"tensor cores: {units or 'no tensor cores'}" if uses_dot else ""
        size = len(binary.asm["cubin"])
        shared = binary.metadata.shared
        print(f"{kernel.__name__:12} {size:7} bytes, {shared:6} shared {products}".rstrip())
    for narrow in ("i8", FP8) if capability >= 89 else ("i8",):
        for kernel, constants, options in eight_bit_cases(narrow):
            binary = compiled(kernel, constants, "bf16", options, capability, narrow)
            shared = binary.metadata.shared
            assert shared <= SHARED_BYTES[capability], f"{kernel.__name__} {constants} {options}"
            print(f"{kernel.__name__:12} {len(binary.asm['cubin']):7} bytes, {narrow}")


if __name__ == "__main__":
    main()
