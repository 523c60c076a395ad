"""What one can set of a training run."""

from dataclasses import dataclass
from typing import Literal

from recipes.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, whatever the task."""

    out: str = "runs/run"
    """Run folder: configuration, checkpoints, logs, and what the task keeps. The same command again continues it."""
    steps: int = 20_000
    """Updates, whatever `accumulate` and the number of processes are."""
    accumulate: int = 1
    """Micro-batches of an update, over all processes together: 4 are 4 on one process, or 2 on each of two."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """AdamW decays weights apart from the gradient (Loshchilov and Hutter 2019); adam and sgd add the decay to it."""
    lr: float = 1e-3
    """Peak learning rate; for `noam` the factor of its formula, dim^-0.5 in the paper."""
    schedule: Schedule = "inverse_sqrt"
    """Shape of the learning rate after `warmup`."""
    warmup: int = 1_000
    """Updates over which the learning rate rises to its peak."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the moments of Adam; the first is also the momentum of sgd."""
    eps: float = 1e-9
    """Added to the root of Adam's second moment."""
    weight_decay: float = 0.0
    """Weight decay of matrices; norms, biases, positions and learned tokens are never decayed."""
    clip: float = 1.0
    """Largest norm of the gradient of an update; 0 does not clip."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of matrix products; weights, sums and the optimizer stay in float32. bf16 is for GPUs, and for CPUs with
    instructions for it: on others it is many times slower."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then what is validated and used; 0 is off."""
    evaluate_every: int = 1_000
    """Updates between validations."""
    monitor: str = "loss"
    """Metric of the validation that chooses the best checkpoint: loss, bleu, chrf2, or what else the task reports."""
    patience: int = 0
    """Validations without a better one after which training stops; 0 never stops early."""
    save_every: int = 1_000
    """Updates between checkpoints; each validation saves one as well."""
    keep_last: int = 2
    """Checkpoints kept beside the best one."""
    keep_best: int = 1
    """Best checkpoints kept."""
    average: int = 0
    """Checkpoints whose weights are averaged at the end; 0 averages none."""
    average_of: Literal["last", "best"] = "last"
    """Which of them: the last, or the best by `monitor`; as many must be kept."""
    keep_every: int = 0
    """Keep the checkpoint of each so many updates for good; 0 keeps none."""
    log_every: int = 20
    """Updates between two lines of metrics, and between two looks at the device."""
    workers: int = 0
    """Processes that read ahead; 0 reads between updates."""
    threads: int = 0
    """CPU threads of each process; 0 shares the cores among the processes."""
    tune: bool = True
    """Let a process on the CPU keep freed memory and multiply float32 by oneDNN, if that is exact: both quicker.

    Kept memory has holes. Where memory is short, give false and set MALLOC_MMAP_THRESHOLD_=131072 in the environment.
    """
    max_skipped: int = 10
    """Updates that may be left out because a gradient was not finite, before the run stops."""
    compile: bool = False
    """Compile the blocks of the model with torch.compile; a recurrent model as a whole."""
    cuda_graphs: bool = False
    """Compile the whole model, record what it asks of a GPU and replay it: for inputs of one shape, such as images."""
    tensorboard: bool = True
    """Log to TensorBoard in the run folder, beside metrics.jsonl."""
    start_from: str = ""
    """Weights of the same model to begin with, a .safetensors file or a checkpoint folder; empty: random ones."""
    seed: int = 1
    """Weights and dropout."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "evaluate_every", "save_every", "keep_last", "keep_best", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"--train.{name} {getattr(self, name)}: choose 1 or more.")
        for name in (
            "lr",
            "warmup",
            "clip",
            "weight_decay",
            "average",
            "patience",
            "keep_every",
            "workers",
            "threads",
            "max_skipped",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"--train.{name} {getattr(self, name)}: choose 0 or more.")
        if not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"--train.seed {self.seed} has more than 64 bits: choose a smaller number.")
        if self.warmup > self.steps:
            raise ValueError(f"--train.warmup {self.warmup} is longer than --train.steps {self.steps}: lower it.")
        if self.warmup == self.steps and self.schedule in ("cosine", "linear"):
            raise ValueError(
                f"--train.warmup {self.warmup} takes all --train.steps, and {self.schedule} ends at 0: lower it."
            )
        kept = self.keep_last if self.average_of == "last" else self.keep_best
        if self.average > kept:
            raise ValueError(
                f"--train.average {self.average} needs as many checkpoints, and --train.keep_{self.average_of} {kept} "
                "keeps fewer: raise it."
            )
        if self.cuda_graphs and not self.compile:
            raise ValueError("--train.cuda_graphs records a compiled model: add --train.compile.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"--train.betas {list(self.betas)} are decays: choose 0 or more, and less than 1.")
        if not self.eps >= 0:
            raise ValueError(f"--train.eps {self.eps} must be 0 or more; 1e-9 is usual.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"--train.ema {self.ema} is a decay: choose 0 or more, and less than 1.")
