"""Forks that stay: order, errors, and what happens when one of them dies."""

import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest

from tasks.translation.forks import Forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork")


def reply(item: int) -> tuple[int, int]:
    if item == -1:
        raise ValueError("no minus one")
    if item == -2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item, os.getpid()


def test_items_come_back_in_order_from_the_same_processes_each_time():
    forks = Forks(reply, 2)
    first, second = forks.map(list(range(20))), forks.map(list(range(20, 40)))
    assert [item for item, _ in first + second] == list(range(40))
    processes = {process for _, process in first + second}
    assert len(processes) <= 2 and os.getpid() not in processes


def test_what_the_function_raises_is_raised_and_the_forks_live_on():
    forks = Forks(reply, 2)
    with pytest.raises(ValueError, match="no minus one"):
        forks.map([1, -1, 2])
    assert forks.map([3])[0][0] == 3


def test_a_fork_that_dies_is_told_and_the_next_call_has_new_ones():
    forks = Forks(reply, 2)
    with pytest.raises(BrokenProcessPool):
        forks.map([1, -2, 2])
    assert [item for item, _ in forks.map([3, 4])] == [3, 4]
