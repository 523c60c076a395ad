"""Forks that stay: order, errors, and what happens when one of them dies."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from tasks.forks import Forks

ROOT = Path(__file__).parents[2]
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


def test_forks_die_with_the_process_that_made_them(tmp_path):
    # Of a process of its own, because it is killed.
    names = tmp_path / "processes"
    program = f"""
import os, pathlib, sys
from tasks.forks import Forks
forks = Forks(lambda item: os.getpid(), 2)
pathlib.Path({str(names)!r}).write_text(" ".join(map(str, set(forks.map(list(range(20)))))))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    processes = [int(name) for name in names.read_text().split()]
    end = time.monotonic() + 20
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes and not any(map(alive, processes))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
