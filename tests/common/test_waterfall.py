"""The stages add up, whatever was told."""

import math

from hypothesis import given
from hypothesis import strategies as st

from common import waterfall

NAMES = [*waterfall.STAGES, *waterfall.COUNTS, "queue", "<script>"]
TOLD = st.dictionaries(st.sampled_from(NAMES), st.floats(allow_nan=True, allow_infinity=True))


def test_stages_until_the_first_token_add_up():
    told = {"proxy_queue": 0.01, "route": 0.001, "prefill_queue": 0.02, "prefill": 0.1}
    found = waterfall.until_first(told, tokenize_s=0.004, waited_s=0.005, ttft_s=0.15)
    assert found["proxy_queue"] == 0.015
    assert list(found) == [*waterfall.TO_FIRST, "ttft"]
    assert math.isclose(sum(found[name] for name in waterfall.TO_FIRST), 0.15)


@given(TOLD)
def test_nonsense_makes_no_stage_and_no_error(told):
    first = waterfall.until_first(told, 0.001, 0.0, 0.01)
    after = waterfall.after_first(told, 0.02)
    assert set(first) <= {*waterfall.TO_FIRST, "ttft"}
    assert set(after) <= {*waterfall.AFTER_FIRST, *waterfall.COUNTS}
    assert all(0.0 <= value < 1e15 for value in [*first.values(), *after.values()])
    header = waterfall.server_timing(first | after)
    assert header.isascii() and "<" not in header
    assert waterfall.in_milliseconds(first | after)["ttft_ms"] == 10.0


def test_a_request_without_hand_over_has_no_such_stages():
    assert waterfall.after_first({"decode_queue": 1.0}, 0.02) == {}


def test_the_header_says_how_much_was_copied():
    told = {"transfer": 0.002, "transfer_exposed": 0.0005, "kv_bytes": 4096.0, "kv_blocks": 2.0}
    header = waterfall.server_timing(waterfall.after_first(told, 0.02))
    assert header == (
        'transfer;dur=2.000;desc="4096 bytes, 2 blocks", transfer_exposed;dur=0.500, '
        "handover;dur=20.000"
    )
