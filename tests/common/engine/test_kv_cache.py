from __future__ import annotations

import mmap
import os

import pytest
import torch

from common.engine.interface import EngineSettings
from common.engine.kv_cache import (
    KVCache,
    KVLayout,
    available_host_bytes,
    default_num_blocks,
    kv_fingerprint,
)
from common.errors import ConfigError

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, block_size=4, head_dim=8, dtype="bfloat16")
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_shape_and_size(dtype):
    layout = KVLayout(3, 2, 4, 8, dtype)
    cache = KVCache(layout, 5, CPU)
    assert cache.tensor.shape == (5, 3, 2, 2, 4, 8)
    assert cache.tensor.dtype is getattr(torch, dtype)
    assert cache.block_bytes == cache.tensor[0].nbytes
    assert cache.tensor[0].is_contiguous(), "one block is one piece of memory"
    assert not cache.tensor.any()
    cache.close()


def test_a_peer_can_map_the_memory():
    cache = KVCache(LAYOUT, 5, CPU)
    cache.tensor[2].fill_(1.5)
    fd = os.open(f"/proc/{os.getpid()}/fd/{cache.fd}", os.O_RDWR)
    peer = mmap.mmap(fd, cache.num_bytes)
    os.close(fd)
    blocks = torch.frombuffer(peer, dtype=torch.bfloat16).view(5, -1)
    assert blocks[2].eq(1.5).all()
    assert not blocks[1].any()
    blocks[4].fill_(2.0)
    assert cache.tensor[4].eq(2.0).all()
    assert cache.address == cache.tensor.data_ptr()
    cache.close()
    cache.close()


def test_impossible_memory_is_refused_in_one_line():
    layout = KVLayout(1, 1, 1 << 10, 1 << 10, "float32")
    with pytest.raises(ConfigError, match="--kv-cache-memory"):
        KVCache(layout, 1 << 36, CPU)


def test_the_fingerprint_tells_all_that_matters_apart():
    variants = [
        kv_fingerprint("m", LAYOUT, "k"),
        kv_fingerprint("n", LAYOUT, "k"),
        kv_fingerprint("m", KVLayout(3, 2, 4, 8, "float16"), "k"),
        kv_fingerprint("m", KVLayout(4, 2, 4, 8, "bfloat16"), "k"),
        kv_fingerprint("m", KVLayout(3, 1, 4, 8, "bfloat16"), "k"),
        kv_fingerprint("m", KVLayout(3, 2, 8, 8, "bfloat16"), "k"),
        kv_fingerprint("m", KVLayout(3, 2, 4, 16, "bfloat16"), "k"),
        kv_fingerprint("m", LAYOUT, "l"),
        kv_fingerprint("m", LAYOUT, "k", "int8"),
    ]
    assert len(set(variants)) == len(variants)
    assert kv_fingerprint("m", LAYOUT, "k") == variants[0]


class TestDefaultNumBlocks:
    settings = EngineSettings(max_model_len=30, max_num_seqs=10, max_num_batched_tokens=10)

    def blocks(self, **kwargs):
        return default_num_blocks(LAYOUT, self.settings, **kwargs)

    def test_what_all_sequences_need_is_enough(self):
        assert self.blocks(available_bytes=1 << 40) == 10 * 8

    def test_a_fifth_of_what_is_available(self):
        assert self.blocks(available_bytes=100 * LAYOUT.block_bytes) == 20

    def test_all_of_a_gpus_share(self):
        size = 70 * LAYOUT.block_bytes
        assert self.blocks(available_bytes=size, is_shared=False) == 70

    def test_one_sequence_always_fits_if_memory_allows(self):
        assert self.blocks(available_bytes=16 * LAYOUT.block_bytes) == 8

    def test_never_more_than_the_limit(self):
        settings = EngineSettings(max_model_len=1 << 22)
        num_blocks = default_num_blocks(LAYOUT, settings, available_bytes=1 << 50)
        assert num_blocks * LAYOUT.block_bytes <= max(4 << 30, (1 << 20) * LAYOUT.block_bytes)

    def test_the_user_decides(self):
        size = 9 * LAYOUT.block_bytes + 5
        assert self.blocks(kv_cache_memory=size, available_bytes=0) == 9

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"kv_cache_memory": 7 * LAYOUT.block_bytes, "available_bytes": 1 << 40},
            {"available_bytes": LAYOUT.block_bytes},
        ],
    )
    def test_too_little_for_one_sequence_names_the_flags(self, kwargs):
        with pytest.raises(ConfigError, match="--kv-cache-memory.*--max-model-len"):
            self.blocks(**kwargs)


def test_this_machine_has_memory():
    assert available_host_bytes() > 1 << 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_model_len": 0},
        {"max_num_seqs": 0},
        {"max_num_waiting": -1},
        {"max_num_seqs": 9, "max_num_batched_tokens": 8},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match="--max-"):
        EngineSettings(**({"max_model_len": 64} | wrong))
