"""When a dead process starts again, with a hand-moved clock."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.restarts import MAX_DELAY_S, MAX_IN_A_ROW, STABLE_S, Restarts


def test_each_death_in_a_row_waits_longer_and_the_last_is_final():
    book = Restarts()
    delays = [book.ended("d", is_clean=False, lived_s=1, now=0.0) for _ in range(MAX_IN_A_ROW)]
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, None]
    assert book.is_hopeless("d")
    assert not book.is_due("d", 1e9)
    assert not book.is_hopeless("p")


def test_due_is_when_the_delay_is_over_and_once():
    book = Restarts()
    book.ended("d", is_clean=False, lived_s=1, now=10.0)
    assert not book.is_due("d", 10.9)
    assert book.is_due("d", 11.0)
    book.started("d")
    assert not book.is_due("d", 1e9)


def test_a_clean_end_starts_at_once_and_is_no_death():
    book = Restarts()
    for _ in range(50):
        assert book.ended("d", is_clean=True, lived_s=0, now=5.0) == 0.0
        assert book.is_due("d", 5.0)


def test_a_long_life_is_a_clean_slate():
    book = Restarts()
    for _ in range(50):
        assert book.ended("d", is_clean=False, lived_s=STABLE_S, now=0.0) == 1.0


def test_a_place_that_is_taken_is_looked_at_again():
    book = Restarts()
    book.ended("d", is_clean=True, lived_s=0, now=0.0)
    book.postpone("d", 7.0)
    assert not book.is_due("d", 7.5)
    assert book.is_due("d", 8.0)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 200)), max_size=30))
def test_a_process_either_gets_a_bounded_wait_or_is_hopeless(life):
    book = Restarts()
    for is_clean, lived_s in life:
        delay_s = book.ended("d", is_clean=is_clean, lived_s=lived_s, now=0.0)
        assert book.is_hopeless("d") == (delay_s is None)
        assert delay_s is None or 0.0 <= delay_s <= MAX_DELAY_S
