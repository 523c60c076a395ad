"""The process a run lives in: how many there are, their threads and memory, and when they should stop."""

import ctypes
import os
import signal
import sys
from itertools import pairwise
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import psutil
import torch

from tasks.errors import InputError

if TYPE_CHECKING:  # it takes seconds, and only training needs it
    from accelerate import Accelerator

LAUNCH_ON_CPUS = (
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {count} --num_machines 1 "
    "--mixed_precision no --dynamo_backend no --main_process_port 0 -m {module}"
)


def check_launch(started: int) -> None:
    """Refuse a launch that asked for several processes and silently got one, or several strangers.

    Args:
        started: processes that belong together, as accelerate counts them.
    """
    asked = max(int(os.environ.get("WORLD_SIZE", "1")), _asked_of_accelerate())
    if asked <= started:
        return
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if spec is not None else sys.argv[0]
    raise InputError(
        f"the launch asked for {asked} processes and {started} work together: on CPUs start them with "
        f"`{LAUNCH_ON_CPUS.format(count=asked, module=module)}`, on GPUs ask for no more than there are."
    )


def check_sharing(accelerator: "Accelerator", accumulate: int, *, graphs: bool) -> None:
    """Refuse processes that would have nothing to do, and what neither checkpoints nor recorded graphs can do.

    Args:
        accelerator: says how many processes there are, and how they work together.
        accumulate: micro-batches of an update, shared by all processes.
        graphs: whether a micro-batch is recorded and replayed on a GPU.
    """
    world = accelerator.num_processes
    if accelerator.distributed_type not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise InputError(
            f"accelerate is configured for {accelerator.distributed_type.value}, which is not supported: launch with "
            "--multi_gpu, or on one process."
        )
    if world > accumulate:
        raise InputError(
            f"{world} processes share the --train.accumulate {accumulate} micro-batches of an update: give "
            f"--train.accumulate {world} or a multiple, so that each has work."
        )
    if graphs and accumulate > world:
        raise InputError(
            f"--train.cuda_graphs would write gradients of one micro-batch over those of another: give "
            f"--train.accumulate {world}, one for each process, or leave it out."
        )


class Machine(NamedTuple):
    """How this process uses the machine."""

    threads: int
    keeps_memory: bool
    """Whether freed memory stays with the process."""
    one_dnn: bool
    """Whether oneDNN multiplies float32 on the CPU, instead of PyTorch's usual library."""

    def __str__(self) -> str:
        memory = "kept" if self.keeps_memory else "given back when freed"
        return f"CPU: {self.threads} threads, memory {memory}, float32 by {'oneDNN' if self.one_dnn else 'default'}"


def use_machine(threads: int, *, tune: bool = True) -> Machine:
    """Set the threads of this process and, with `tune`, what makes it quicker and changes only the order of sums.

    `threads` 0 shares the cores among the processes of this machine. glibc gives large blocks back to the kernel as
    soon as they are free and faults them in again at the next step, a tenth of a training step where it was measured.
    PyTorch multiplies float32 by MKL, which is slow on some CPUs that are not Intel's.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads > (most := 16 * (os.cpu_count() or 1)):
        raise InputError(f"--train.threads {threads} are too many for this machine: choose at most {most}, or 0.")
    torch.set_num_threads(threads or max(1, cores // local))
    return Machine(torch.get_num_threads(), tune and _keep_memory(), tune and _multiply_by_one_dnn())


def _keep_memory() -> bool:
    """Let glibc keep what is freed, and ask Linux for large pages for it, so that fewer are looked up and faulted in.

    The heap is made to grow by 2 GiB of addresses at once, because only what exists can be marked; pages come with use.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    huge_page, madv_hugepage, size = 2**21, 14, 2**28
    try:
        libc = ctypes.CDLL("libc.so.6")
        kept = all((libc.mallopt(trim_threshold, 2**31 - 1), libc.mallopt(mmap_threshold, 2**30)))
        libc.malloc.restype = libc.sbrk.restype = ctypes.c_size_t
        libc.mallopt(top_pad, 2**31 - 1)
        block = libc.malloc(ctypes.c_size_t(size))
        begin, end = -(-block // huge_page) * huge_page, libc.sbrk(ctypes.c_ssize_t(0))
        libc.madvise(ctypes.c_size_t(begin), ctypes.c_size_t(end // huge_page * huge_page - begin), madv_hugepage)
        libc.free(ctypes.c_void_p(block))
        return kept
    except (OSError, AttributeError):
        return False  # another C library has its own habits


def _multiply_by_one_dnn() -> bool:
    """Let oneDNN multiply float32 where it does not round; say whether PyTorch follows.

    It is only asked for as a library that may round to bfloat16, which it does where the CPU has instructions for that:
    a product tells. Rounding to float32 errs by 5e-5 here, bfloat16 by 0.2. PyTorch follows where there is AVX-512;
    elsewhere the wish counts for packed weights alone (`transformer_core.packing`).
    """
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():  # the setting is also that of a GPU
        return False
    left, right = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    exact = bool((left @ right - left.double() @ right.double()).abs().amax() < 1e-3)
    if not exact:
        torch.set_float32_matmul_precision(before)
    return exact and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class StopRequest:
    """Whether somebody asked this process to stop: SIGTERM, SIGINT, or a launcher that died.

    The handler only sets a flag, so that an update or a checkpoint is never cut in two.
    """

    def __enter__(self) -> Self:
        self.asked = False
        # A process of its own outlives the shell that started it; one that was launched ends with its launcher.
        self._launched, self._parent = "LOCAL_RANK" in os.environ or bool(_launcher()), os.getppid()
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *details: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.asked or (self._launched and os.getppid() != self._parent)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT:  # who presses Ctrl-C twice does not want to wait
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])


def _launcher() -> list[str]:
    """Return the command line of the `accelerate launch` that started this process; nothing where none did."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    return words if any(os.path.basename(word).startswith("accelerate") for word in words[:3]) else []


def _asked_of_accelerate() -> int:
    """Read the number of processes from the command line of `accelerate launch`, which passes it on in no variable."""
    for word, following in pairwise([*_launcher(), ""]):
        name, _, value = word.partition("=")
        if name.replace("-", "_") in ("__num_processes", "_n"):
            number = value or following
            return int(number) if number.isdigit() else 1
    return 1
