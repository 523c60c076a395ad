import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from recipes import processes, run_folder
from recipes.processes import StopRequest, check_launch, use_machine
from recipes.run_folder import claimed
from tasks.errors import InputError

REPOSITORY = Path(__file__).parents[2]
SHAPE = "--num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1".split()
TWO = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0", *SHAPE]
RIGHT = (
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0 -m recipes.reverse"
)


def launcher(*flags: str, cpu: bool, arguments: list[str]) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment |= {"ACCELERATE_USE_CPU": "true"} if cpu else {}
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "-m", "recipes.reverse", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("flags", [["--cpu", "--num_processes", "2", *SHAPE], TWO], ids=["one alone", "two strangers"])
def test_a_launch_that_does_not_start_what_it_was_asked_for_is_refused_with_the_right_one(tmp_path, flags):
    out = tmp_path / "run"
    with launcher(*flags, cpu=False, arguments=[f"--train.out={out}"]) as process:
        written = process.communicate()[1]
    assert process.returncode != 0
    said = [line for line in written.splitlines() if line.startswith("error")]
    assert said and all("the launch asked for 2 processes and 1 work together" in line for line in said), written
    assert all(f"`{RIGHT}`" in line for line in said)
    assert "exit status 2" in written or "exitcode  : 2" in written or "exitcode: 2" in written, written
    assert not (out / "checkpoints").exists() and not (out / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "number"),
    [(["--num_processes", "1", *SHAPE], signal.SIGTERM), (TWO, signal.SIGKILL)],
    ids=["one, asked to stop", "two, killed"],
)
def test_ranks_save_and_leave_when_their_launcher_is_gone(tmp_path, flags, number):
    endless = ["--train.steps=1000000", "--train.log_every=1", "--train.threads=1", "--train.tensorboard=false"]
    tiny = ["--train.accumulate=2", "--block.dim=8", "--block.num_heads=2", "--block.hidden_dim=12", "--data.batch=4"]
    with launcher(*flags, cpu=True, arguments=[f"--train.out={tmp_path / 'run'}", *endless, *tiny]) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("update 3 "):
                break
        ranks = psutil.Process(process.pid).children(recursive=True)
        try:
            process.send_signal(number)
            written = process.stderr.read()  # to its end, which is when the last rank has left
            alive = psutil.wait_procs(ranks, timeout=10)[1]
        finally:
            for rank in filter(psutil.Process.is_running, ranks):
                rank.kill()
    assert len(ranks) >= (2 if flags is TWO else 1) and not alive, written
    assert "stopped on request at update" in written
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_leaves_a_note_until_the_context_ends(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
    assert signal.getsignal(number) is before


def test_sigterm_may_come_twice_but_who_interrupts_twice_does_not_wait():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_a_launcher_that_died_is_a_request_to_stop(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    launcher = os.getppid()  # 1 where nobody else is left: a number that is not it
    with StopRequest() as stop:
        assert not stop
        monkeypatch.setattr(os, "getppid", lambda: launcher + 1)
        assert stop


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["python", "/bin/accelerate", "launch", "--num_processes", "3", "-m", "x"], 3),
        (["python", "-m", "accelerate.commands.launch", "--num-processes=4", "-m", "x"], 4),
        (["/bin/accelerate-launch", "-n", "5", "-m", "x"], 5),
        (["python", "/bin/accelerate", "launch", "-m", "x"], 1),
        (["bash", "-c", "x --num_processes 3"], 1),
    ],
)
def test_the_command_line_of_the_launcher_says_how_many_were_asked_for(monkeypatch, words, asked):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(processes.psutil.Process, "cmdline", lambda process: words)
    check_launch(asked)
    if asked > 1:
        with pytest.raises(InputError, match=f"asked for {asked} processes and {asked - 1} work together"):
            check_launch(asked - 1)


def test_as_many_as_asked_for_or_started_by_another_launcher_are_welcome(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(2)
    monkeypatch.delenv("WORLD_SIZE")
    check_launch(2)


def test_threads_are_shared_among_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)))
    try:
        assert use_machine(0).threads == 7 and torch.get_num_threads() == 7
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        assert use_machine(0).threads == 2
        assert use_machine(1).threads == 1
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "9")
        assert use_machine(0).threads == 1
    finally:
        torch.set_num_threads(1)


def test_a_tuned_process_still_multiplies_float32_exactly_and_says_what_it_did():
    threads = torch.get_num_threads()
    try:
        machine = use_machine(1)
        left, right = torch.randn(2, 300, 300)
        assert (left @ right - left.double() @ right.double()).abs().amax() < 1e-3
        assert str(machine).startswith("CPU: 1 threads, memory kept, float32 by ")
        plain = use_machine(1, tune=False)
        assert not plain.keeps_memory and not plain.one_dnn
    finally:
        torch.set_num_threads(threads)


def test_a_folder_has_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.2)
    with claimed(tmp_path):
        with pytest.raises(InputError, match=f"{tmp_path} is being trained in by another process"), claimed(tmp_path):
            pytest.fail("two at once")
        monkeypatch.setenv("RANK", "1")
        with claimed(tmp_path):  # the main process of the same run has it
            pass
        monkeypatch.delenv("RANK")
    with claimed(tmp_path):
        pass


def test_more_threads_than_a_machine_bears_are_refused():
    with pytest.raises(InputError, match="--train.threads 100000 are too many"):
        use_machine(100_000)
