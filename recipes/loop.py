"""The one training loop, for every task.

An update sums the gradients of a window of micro-batches over all processes and divides once, by the number of targets
in the whole window: how the window is split over processes changes nothing. All randomness follows from the seed and
the place in the run, so a killed run that is started again ends in the same weights, bit for bit.
"""

from collections.abc import Sequence
from contextlib import closing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    send_to_device,
)
from filelock import FileLock
from torch import nn

from recipes import checkpoint
from recipes.compiling import compiled
from recipes.config import flatten
from recipes.evaluation import check_reported, evaluate
from recipes.feed import Item, keys, readers_watched, windows
from recipes.meter import Meter
from recipes.optimizer import make_optimizer
from recipes.processes import StopRequest, check_launch, check_sharing, use_machine
from recipes.run_folder import LOCK, claimed, opened
from recipes.schedule import learning_rate
from recipes.state import CHECKPOINTS, MovingAverage, State, as_scalars, derived_seed
from recipes.tracking import Display, JsonLines, console, number
from recipes.train_config import TrainConfig
from recipes.weights import load_weights
from tasks.errors import InputError
from tasks.task import Task
from transformer_core.packing import has_bfloat16

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others, which may prepare data; where one dies, the launcher ends them all."""


class Run(NamedTuple):
    """What training leaves behind."""

    state: State
    accelerator: Accelerator


def train(task: Task[Any], config: TrainConfig, recipe: Any) -> Run:
    """Train until the last step or early stopping; continues what the run folder holds.

    `recipe` is the whole configuration, kept in the run folder and compared when the run is continued.
    Raises InputError for what the user has to mend; whatever was saved stays.
    """
    with claimed(Path(config.out)):
        return run(task, config, recipe)


def run(task: Task[Any], config: TrainConfig, recipe: Any) -> Run:
    """Train in a folder that nobody else trains in."""
    accelerator, state, model = prepare(task, config, recipe)
    folder, progress = Path(config.out), state.progress
    trackers(accelerator, config, recipe, progress.step)
    display = Display(steps=config.steps, done=progress.step, main=accelerator.is_main_process)
    if progress.step:
        past = f", which is past --train.steps {config.steps}" if progress.step > config.steps else ""
        display.line(f"continuing {folder} after update {progress.step}{past}")
    rank, world = accelerator.process_index, accelerator.num_processes
    order = keys(
        task, accumulate=config.accumulate, epoch=progress.epoch, window=progress.window, rank=rank, world=world
    )
    stream = windows(task, order, workers=config.workers, pin=accelerator.device.type == "cuda")
    meter = Meter(accelerator, task.unit)
    try:
        with closing(stream), StopRequest() as stop, readers_watched(config.workers):
            while progress.step < config.steps and not progress.stopped_early:
                with meter.waiting():
                    window = next(stream)
                update(task, model, state, window, config, accelerator, meter)
                progress.step, progress.epoch, progress.window = (
                    progress.step + 1,
                    window[0].key.epoch,
                    window[0].key.window + 1,
                )
                display.step()
                evaluating = progress.step % config.evaluate_every == 0 or progress.step == config.steps
                saving = evaluating or progress.step % config.save_every == 0
                stopping = False
                # Also before each checkpoint, because the sums of an interval are not in it.
                if saving or progress.step % config.log_every == 0:
                    values, stopping = meter.report(bool(stop), config.max_skipped, progress)
                    values["train/lr"] = rate(config, progress.step)
                    accelerator.log(values, progress.step)
                    display.metrics(progress.step, values)
                if evaluating:
                    validate(task, state, config, accelerator, display)
                if saving or stopping:
                    save(state, folder, config, accelerator)
                    meter.restart()
                if stopping:
                    display.line(f"stopped on request at update {progress.step}; the same command continues")
                    accelerator.end_training()
                    raise SystemExit(0)
    finally:
        display.close()
        for tracker in accelerator.trackers:
            tracker.finish()
    return Run(state, accelerator)


def prepare(task: Task[Any], config: TrainConfig, recipe: Any) -> tuple[Accelerator, State, nn.Module]:
    """Do what comes before the first update: open the run folder, join the processes, read the data, make the model."""
    folder = Path(config.out)
    with opened(folder, recipe):
        accelerator = start(config, folder, task)
        state, model = build(task, config, accelerator)
        resume(task, state, folder, config, accelerator)
    if accelerator.is_main_process:
        for table in task.tables():
            console().print(table)
    return accelerator, state, model


def start(config: TrainConfig, folder: Path, task: Task[Any]) -> Accelerator:
    """Join the other processes, then let the task read its data."""
    machine = use_machine(config.threads, tune=config.tune)
    accelerator = Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
        project_dir=folder,
    )
    check_launch(accelerator.num_processes)
    check_sharing(accelerator, config.accumulate, graphs=config.cuda_graphs)
    # One after the other: what the first makes, the others find.
    with FileLock(folder / LOCK):
        task.prepare(folder)
    if accelerator.is_main_process:
        for place in (folder, folder / CHECKPOINTS):
            checkpoint.clean(place)
        if accelerator.device.type == "cpu":
            console().print(str(machine), highlight=False)
            if config.precision == "bf16" and not (torch.backends.mkldnn.is_available() and has_bfloat16()):
                console().print("this CPU has no instructions for bf16, which is slow here: --train.precision fp32")
    return accelerator


def build(task: Task[Any], config: TrainConfig, accelerator: Accelerator) -> tuple[State, nn.Module]:
    """Make the model, the same on every process, and what trains it; return it bare in the state, and wrapped."""
    torch.manual_seed(config.seed)
    bare = task.build().to(accelerator.device)
    optimizer = make_optimizer(bare, config, task.rate_factors(bare))
    average = MovingAverage(bare, config.ema) if config.ema else None
    model = compiled(bare, ragged=task.ragged, graphs=config.cuda_graphs) if config.compile else bare
    return State(bare, optimizer, average), accelerator.prepare_model(model)


def resume(task: Task[Any], state: State, folder: Path, config: TrainConfig, accelerator: Accelerator) -> None:
    """Continue from the newest whole checkpoint, chosen by the main process for all, or begin as the settings say."""
    chosen: list[Path | None] = [None]
    if accelerator.is_main_process:
        chosen = [checkpoint.newest(folder / CHECKPOINTS)]
    broadcast_object_list(chosen)
    data = task.digest()
    if chosen[0] is not None:
        state.load(chosen[0])
        if state.progress.data not in ("", data):
            raise InputError(
                f"{folder} was trained on other data than those that are there now: give back the ones it began with, "
                "or choose another --train.out, whose weights may --train.start_from this run's."
            )
        if state.progress.monitor not in ("", config.monitor):
            state.progress.best, state.progress.stale = [], 0
        state.progress.stopped_early = bool(config.patience) and state.progress.stale >= config.patience
    else:
        task.begin(state.model)
        if config.start_from:
            load_weights(state.model, Path(config.start_from))
        state.average = MovingAverage(state.model, config.ema) if config.ema else None
    state.progress.monitor, state.progress.data = config.monitor, data


def trackers(accelerator: Accelerator, config: TrainConfig, recipe: Any, step: int) -> None:
    """Open metrics.jsonl and TensorBoard, on the main process."""
    if accelerator.is_main_process:
        jsonl = JsonLines(Path(config.out) / "metrics.jsonl", step)
        accelerator.log_with = [jsonl, *(["tensorboard"] if config.tensorboard else [])]
    accelerator.init_trackers(
        "tensorboard", as_scalars(flatten(recipe)), init_kwargs={"tensorboard": {"purge_step": step + 1}}
    )


def rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of an update."""
    return learning_rate(step, schedule=config.schedule, peak=config.lr, warmup=config.warmup, steps=config.steps)


def update(
    task: Task[Any],
    model: nn.Module,
    state: State,
    window: Sequence[Item],
    config: TrainConfig,
    accelerator: Accelerator,
    meter: Meter,
) -> None:
    """Make one update from this process's share of a window; nothing here waits for the device."""
    step, world = state.progress.step + 1, accelerator.num_processes
    own = sum(item.targets for item in window)
    targets = torch.full((), float(own), device=accelerator.device)  # torch.tensor would wait for the device
    if world > 1:
        targets = cast(torch.Tensor, accelerator.reduce(targets, "sum"))
    targets = targets.clamp(min=1.0)
    model.train()
    for item in window:
        torch.manual_seed(derived_seed(config.seed, step, item.key.place))
        with nullcontext() if item.key.last else accelerator.no_sync(model):
            with accelerator.autocast():
                loss = task.loss(model, send_to_device(item.batch, accelerator.device, non_blocking=True))
            # Wrapping averages the gradients over the processes, and they are to be summed.
            accelerator.backward(loss.total * (world / targets if item.key.real else 0.0))
        meter.add({"loss": loss.total.detach(), **loss.report}, counts=item.key.real)
    weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if config.clip:
        torch.nn.utils.clip_grads_with_norm_(weights, config.clip, norm)
    for group in state.optimizer.param_groups:
        group["lr"] = rate(config, step) * group["factor"]
    # The fused optimizers leave the weights alone where this is 1; the same norm on all processes decides.
    state.optimizer.found_inf = (~norm.isfinite()).float()  # pyright: ignore[reportAttributeAccessIssue]
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        state.average.update(state.model, step)
    meter.updated(norm, own, [row for item in window if item.key.real for row in item.key.rows])


def validate(task: Task[Any], state: State, config: TrainConfig, accelerator: Accelerator, display: Display) -> None:
    """Score the validation split, remember the best step, and say whether to stop early."""
    progress = state.progress
    with state.average.applied(state.model) if state.average is not None else nullcontext():
        metrics, lines = evaluate(task, state.model, "valid", accelerator, workers=config.workers)
    accelerator.log({f"valid/{name}": value for name, value in metrics.items()}, progress.step)
    if config.monitor not in metrics:
        save(state, Path(config.out), config, accelerator)  # the run goes on from here, with another metric
    check_reported("--train.monitor", config.monitor, metrics)
    score = metrics[config.monitor] * task.sign(config.monitor)
    improved = not progress.best or score > progress.best[0][0]
    progress.stale = 0 if improved else progress.stale + 1
    progress.best = sorted([*progress.best, (score, progress.step)], key=lambda pair: -pair[0])[: config.keep_best]
    shown = "  ".join(f"{name} {number(value)}" for name, value in metrics.items())
    display.line(f"validation after update {progress.step}{' (best)' if improved else ''}: {shown}")
    for line in lines:
        display.line(line)
    if config.patience and progress.stale >= config.patience:
        display.line(f"stopping early: {config.monitor} has not improved in {progress.stale} validations")
        progress.stopped_early = True


def save(state: State, folder: Path, config: TrainConfig, accelerator: Accelerator) -> None:
    """Write a checkpoint on the main process, then delete those that are no longer kept."""
    if accelerator.is_main_process:
        state.save(folder)
        best = [checkpoint.path_of(folder / CHECKPOINTS, step) for _, step in state.progress.best]
        checkpoint.prune(folder / CHECKPOINTS, config.keep_last, best, config.keep_every)
    accelerator.wait_for_everyone()
