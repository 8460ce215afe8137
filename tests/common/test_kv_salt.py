"""An adapter's KV has names of its own, whatever clients call their salts."""

from hypothesis import given
from hypothesis import strategies as st

from common.engine.prefix import PrefixHasher
from common.handle_seal import prompt_digest
from common.request import EngineRequest, SamplingParams, kv_salt_of, split_kv_salt
from kv_transfer.handles import content_of

DIGESTS = ("", "0" * 64, "a" * 64)
NASTY = ("", "lora:", "salt:", "lora:" + "0" * 64 + ":", "salt:lora:x", "tenant/lora:", "\ud800")
salts = (
    st.sampled_from(NASTY)
    | st.text(max_size=8)
    | st.builds("".join, st.lists(st.sampled_from(NASTY), max_size=3))
)
pairs = st.tuples(salts, st.sampled_from(DIGESTS))


@given(one=pairs, other=pairs)
def test_two_pairs_never_share_a_salt(one, other):
    assert (kv_salt_of(*one) == kv_salt_of(*other)) is (one == other)
    assert split_kv_salt(kv_salt_of(*one)) == one


def test_without_an_adapter_a_salt_is_what_it_was():
    assert kv_salt_of("tenant/x", "") == "tenant/x"


def test_every_name_of_kv_depends_on_the_adapter():
    requests = [
        EngineRequest("r", (1, 2, 3, 4), SamplingParams(1), cache_salt=salt, adapter=adapter)
        for salt in ("", "s")
        for adapter in DIGESTS
    ]
    hasher = PrefixHasher("f", 2)
    names = [
        (
            tuple(hasher.full_blocks(request.prompt_token_ids, request.kv_salt)),
            content_of(request.prompt_token_ids, request.kv_salt),
            prompt_digest(request),
        )
        for request in requests
    ]
    for kind in zip(*names, strict=True):
        assert len(set(kind)) == len(requests)
