"""A clock that stands still while a run is suspended."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from bdbench.machine import suspension
from bdbench.machine.suspension import now, own_clock, resume, suspend
from bdbench.running.worker import limited
from bdbench.trial.failure import TimeLimit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The system's clock, for this test only. It starts at 100 s."""
    at = [100.0]
    monkeypatch.setattr(suspension, "_lost", suspension._counter())
    monkeypatch.setattr(suspension, "time", SimpleNamespace(monotonic=lambda: at[0]))
    yield at
    resume()


def test_the_clock_stands_still(clock: list[float]) -> None:
    assert now() == 100.0
    for seconds in (5.0, 7.0):
        before = now()
        suspend()
        clock[0] += seconds
        suspend()
        assert now() == before
        clock[0] += 1.0
        assert now() == before
        resume()
        resume()
        assert now() == before
        clock[0] += 2.0
        assert now() == before + 2.0
    assert now() == 104.0


def in_child(clock: list[float]) -> float:
    """`now` in a process forked here, which waits for this one to suspend it for 10 seconds."""
    (ready, wait), (reading, writing) = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        os.read(ready, 1)
        os.write(writing, str(now()).encode())
        os._exit(0)
    suspend()
    clock[0] += 10.0
    resume()
    os.write(wait, b".")
    answer = float(os.read(reading, 100))
    os.waitpid(child, 0)
    for descriptor in (ready, wait, reading, writing):
        os.close(descriptor)
    return answer


def test_forked_processes_share_it(clock: list[float]) -> None:
    assert in_child(clock) == 90.0
    own_clock()
    clock[0] += 5.0
    assert in_child(clock) == 95.0


def test_a_process_may_have_a_clock_of_its_own(clock: list[float]) -> None:
    suspend()
    clock[0] += 3.0
    resume()
    shared = suspension._lost
    own_clock()
    assert now() == 100.0
    suspend()
    clock[0] += 4.0
    resume()
    assert (now(), shared[0], suspension._lost[0]) == (100.0, 3.0, 7.0)


def test_a_limit_does_not_count_it() -> None:
    end = time.monotonic() + 0.9

    def sleep_twice() -> None:
        suspend()
        time.sleep(0.6)
        resume()
        time.sleep(10)

    with limited(0.3), pytest.raises(TimeLimit):
        sleep_twice()
    assert time.monotonic() >= end


def test_a_limit_may_end_in_a_suspension() -> None:
    """A keeper is not stopped itself."""
    with limited(0.2):
        suspend()
        time.sleep(0.5)
        resume()
