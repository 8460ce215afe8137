"""When an engine counts as stuck, by what it has taken its time for before."""

from hypothesis import given
from hypothesis import strategies as st

from common.engine.patience import LEAST_S, MOST_S, NUM_TO_KNOW, TIMES, Patience


def after(*seconds):
    patience = Patience()
    for each in seconds:
        patience.took(each)
    return patience.limit_s


def test_a_young_engine_gets_all_the_time_there_is():
    assert after() == MOST_S
    assert after(*[0.001] * (NUM_TO_KNOW - 1)) == MOST_S


def test_a_quick_engine_is_given_up_sooner_than_a_slow_one():
    assert after(*[0.005] * NUM_TO_KNOW) == LEAST_S
    assert after(*[1.0] * NUM_TO_KNOW) == TIMES
    assert after(*[4.0] * NUM_TO_KNOW) == MOST_S


def test_one_long_step_is_remembered_for_a_while():
    quick = [0.005] * NUM_TO_KNOW
    assert after(*quick, 1.0, *quick) > LEAST_S
    assert after(*quick, 1.0, *[0.005] * 5000) == LEAST_S


@given(st.lists(st.floats(0.0, 1e6), max_size=400))
def test_it_has_bounds(seconds):
    assert LEAST_S <= after(*seconds) <= MOST_S


@given(st.lists(st.floats(0.0, 1.4), min_size=NUM_TO_KNOW, max_size=2 * NUM_TO_KNOW))
def test_what_it_has_just_done_ten_times_over_is_no_death(seconds):
    assert after(*seconds) >= 10 * seconds[-1]
