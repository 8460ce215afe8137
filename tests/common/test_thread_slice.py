"""Slices are asked for by thread: short where messages are answered, the usual ones elsewhere."""

from __future__ import annotations

import platform
import threading

import pytest

from common import thread_slice


def in_a_thread(work):
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_passes_on_what_it_has_and_may_have_another():
    def body():
        before = thread_slice.slice_s()
        thread_slice.ask_for_short_slices()
        mine = thread_slice.slice_s()
        inherited = in_a_thread(thread_slice.slice_s)
        usual = in_a_thread(lambda: (thread_slice.ask_for_usual_slices(), thread_slice.slice_s()))
        return before, mine, inherited, usual[1]

    before, mine, inherited, usual = in_a_thread(body)
    if mine != thread_slice.SHORT_S:
        pytest.skip("this kernel gives all threads the same slices")
    assert inherited == mine < before
    assert usual == before
    assert thread_slice.slice_s() == before  # of this thread: not touched


def test_where_it_cannot_be_had_nothing_happens(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "another")
    assert thread_slice.ask_for_short_slices() is False
    assert thread_slice.slice_s() is None
