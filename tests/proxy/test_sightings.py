"""What the proxy remembers for people: bounded, and alike things together."""

from common.recent import percentiles_of
from proxy.sightings import MAX_FAILURES, MAX_PAIRS, Failures, Pairs, Trip


def test_alike_failures_in_a_row_are_one_entry():
    failures = Failures()
    for number in range(5):
        failures.note(
            100.0 + number, "attempt failed", "no", instance="d0", request_id=f"r{number}"
        )
    failures.note(200.0, "instance lost", "gone", instance="d0")
    first, second = failures
    assert (first.what, first.count) == ("instance lost", 1)
    assert (second.count, second.request_id, second.at) == (5, "r4", 104.0)


def test_failures_are_bounded_in_number_and_in_length():
    failures = Failures()
    for number in range(3 * MAX_FAILURES):
        failures.note(float(number), "attempt failed", f"{number} " + "x" * 10_000)
    kept = list(failures)
    assert len(kept) == MAX_FAILURES
    assert kept[0].message.startswith(f"{3 * MAX_FAILURES - 1} ")
    assert max(len(each.message) for each in kept) <= 300


def told(seconds=0.004, size=1 << 20):
    return {"transfer": seconds, "kv_bytes": float(size), "kv_blocks": 2.0}


def test_pairs_show_the_last_minute_of_instances_that_are_there():
    pairs = Pairs()
    for _ in range(10):
        pairs.handed_over(("p0", "d0"), told(), 1.0)
    pairs.handed_over(("p0", "gone"), told(), 1.0)
    (pair,) = pairs.recent({"p0", "d0"}, 2.0)
    found = percentiles_of(pair.transfer)
    assert (pair.prefill, pair.decode, found.count) == ("p0", "d0", 10)
    assert found.p50 is not None and 0.0035 < found.p50 < 0.0045
    assert pair.bytes_per_s == 10 * (1 << 20)  # the pair is as old as a second
    assert pairs.recent({"p0", "d0"}, 100.0) == []


def test_pairs_are_bounded_and_believe_no_nonsense():
    pairs = Pairs()
    for bad in ({}, told(float("nan")), told(-1.0), {"transfer": 1.0, "kv_bytes": float("inf")}):
        pairs.handed_over(("p0", "d0"), bad, 1.0)
    assert pairs.recent({"p0", "d0"}, 1.0) == []
    for number in range(MAX_PAIRS + 10):
        pairs.handed_over((f"p{number}", "d0"), told(), 1.0 + number / 1000)
    names = {f"p{number}" for number in range(MAX_PAIRS + 10)} | {"d0"}
    found = {pair.prefill for pair in pairs.recent(names, 3.0)}
    assert len(found) == MAX_PAIRS and "p0" not in found


def test_a_trip_counts_failed_attempts_as_waiting():
    trip = Trip(began=10.0)
    trip.routed(10.1, 10.2, ("p0", "d0"))
    trip.routed(12.0, 12.5, ("p1", "d0"))
    assert trip.timings() == {"proxy_queue": 2.0, "route": 0.5}
    assert trip.pair == ("p1", "d0")
    trip.routed(13.0, 13.0, ("d0",))
    assert trip.pair is None
