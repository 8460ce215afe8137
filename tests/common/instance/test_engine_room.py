"""When one engine behind its own HTTP side has room."""

from __future__ import annotations

import pytest

from common.admission.admission import Want
from common.engine.interface import EngineLoad
from common.instance.room import EngineRoom


def room(**load):
    told = EngineLoad(
        **{"num_running": 0, "num_waiting": 0, "num_waiting_tokens": 0, **load},
        free_blocks=10,
        total_blocks=10,
    )
    return EngineRoom(lambda: told, max_num_seqs=8)  # ten seats


@pytest.mark.parametrize(
    ("load", "num_running", "expected"),
    [
        ({}, 9, True),
        ({}, 10, False),  # the load does not know of them yet
        ({"num_running": 8, "num_waiting": 2}, 1, False),  # others' requests count, too
        ({"num_running": 8, "num_waiting": 1}, 1, True),
        ({"num_waiting_tokens": 99}, 1, True),
        ({"num_waiting_tokens": 100}, 1, False),
        ({"num_running": 50, "num_waiting_tokens": 10**6}, 0, True),  # nothing of ours: go
    ],
)
def test_room(load, num_running, expected):
    want = Want(num_tokens=10, max_backlog=100, num_running=num_running)
    assert room(**load).has_room(want) is expected


def test_the_backlog_is_what_waits():
    assert room(num_waiting_tokens=77).backlog() == 77
