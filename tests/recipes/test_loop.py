"""What the loop promises of every task, shown with the toy one."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import children
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.testing import assert_close

from recipes import checkpoint, loop, reverse
from recipes.config import launch, write_config
from recipes.evaluation import evaluate
from recipes.ladder import Expected, finish
from recipes.loop import build, start, train
from recipes.optimizer import make_optimizer
from recipes.processes import check_sharing
from recipes.reverse import PAD, Recipe, Reverse, Strings
from recipes.run_folder import open_run
from recipes.schedule import learning_rate
from recipes.state import MovingAverage
from recipes.train_config import TrainConfig
from tasks.errors import InputError
from tasks.image_classification.model import ImageModelConfig, build_model
from tasks.image_classification.vit import VitConfig
from transformer_core import BlockConfig

REPOSITORY = Path(__file__).parents[2]
BLOCK = BlockConfig(dim=8, num_heads=2, hidden_dim=12, dropout=0.2)
# 7 micro-batches of training strings and 3 of 17 validation strings; the last of each is small.
STRINGS = Strings(longest=5, train=51, valid=17, batch=8)
CONFIG = TrainConfig(steps=7, accumulate=3, lr=0.01, warmup=2, clip=0, monitor="exact")
# The bias of a key has no gradient but rounding, which a small eps would blow up to a full step.
CONFIG = replace(
    CONFIG, eps=1e-5, evaluate_every=3, save_every=1, keep_last=20, log_every=1, threads=1, tensorboard=False
)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


class Toy:
    """A run of the toy task: its settings, and what it leaves in its folder."""

    def __init__(self, out: Path, strings: Strings = STRINGS, block: BlockConfig = BLOCK, **changes) -> None:
        self.out = out
        self.config = replace(CONFIG, out=str(out), **changes)
        self.recipe = Recipe(data=strings, block=block, depth=1, train=self.config)

    def train(self, task: Reverse | None = None) -> "Toy":
        self.run = train(task or Reverse(self.recipe.data, self.recipe.block, 1), self.config, self.recipe)
        return self

    def settings(self) -> list[str]:
        out = self.out.with_name(f"{self.out.name}.yaml")
        write_config(self.recipe, out)
        return [f"--config={out}"]

    def fork(self, *changes, ranks: int = 1) -> children.Ended:
        return children.run("recipes.reverse", self.settings(), self.out.with_suffix(".log"), *changes, ranks=ranks)

    def metrics(self, name: str) -> dict[int, float]:
        lines = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line[name] for line in lines if name in line}

    def saved(self, step: int, kind: str = "model") -> dict[str, Tensor]:
        return checkpoint.load(self.out / "checkpoints" / f"step-{step:08d}").tensors[kind]

    def gradient(self) -> dict[str, Tensor]:
        """Return the gradient of the first update, of which Adam's first moment is a share."""
        first, share = self.saved(1, "optimizer"), 1 - self.config.betas[0]
        return {name: value / share for name, value in first.items() if name.endswith("exp_avg")}

    def steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in (self.out / "checkpoints").glob("step-*"))


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    scale = max(float(value.abs().max()) for value in b.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / scale


# One process and many


def one_update(out: Path, ranks: int, *changes) -> dict[str, Tensor]:
    toy = Toy(out, replace(STRINGS, train=61), steps=1, accumulate=8, warmup=1)
    ended = toy.fork(*changes, ranks=ranks)
    assert ended.codes == [0] * ranks, ended.text
    return toy.gradient()


def divide_by_own_targets() -> None:
    """Break the loop: each rank divides by what it counted itself."""
    Accelerator.reduce = lambda accelerator, tensor, how: tensor * accelerator.num_processes


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_window_has_the_same_gradient_however_it_is_split(tmp_path, alone, ranks):
    assert largest_difference(one_update(tmp_path / "run", ranks), alone) < 1e-6


def test_a_mean_of_means_would_be_noticed(tmp_path, alone):
    assert largest_difference(one_update(tmp_path / "run", 4, divide_by_own_targets), alone) > 1e-3


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Tensor]:
    return one_update(tmp_path_factory.mktemp("alone") / "run", 1)


def test_the_gradient_of_an_update_is_that_of_the_mean_over_all_its_targets(tmp_path):
    toy = Toy(tmp_path, block=replace(BLOCK, dropout=0.0), steps=1, warmup=1).train()
    task = Reverse(STRINGS, BLOCK, 1)
    torch.manual_seed(toy.config.seed)
    model = Reverse(STRINGS, replace(BLOCK, dropout=0.0), 1).build()
    batch = task.batch("train", range(24), 0)
    F.cross_entropy(model(batch.source, batch.target).mT, batch.labels, ignore_index=PAD).backward()
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    expected = {f"state.{i}.exp_avg": weight.grad for i, weight in enumerate([*matrices, *others])}
    assert largest_difference(toy.gradient(), expected) < 1e-5


class Halved(Reverse):
    """Moves the matrix of the output half as fast as the rest, and its bias not at all."""

    def rate_factors(self, model):
        return {"output.weight": 0.5, "output.bias": 0.0}


def test_each_update_moves_the_weights_at_the_rate_of_its_step_times_their_factor(tmp_path):
    task = Halved(STRINGS, replace(BLOCK, dropout=0.0), 1)
    toy = Toy(tmp_path, optimizer="sgd", betas=(0.0, 0.0), schedule="linear").train(task)
    model = task.build()
    for step, epoch, window in ((2, 0, slice(3, 6)), (3, 0, slice(6, 7)), (4, 1, slice(0, 3))):
        model.load_state_dict(toy.saved(step - 1))
        model.zero_grad()
        batches = [task.batch("train", rows, epoch) for rows in task.plan("train", epoch)[window]]
        total = sum(task.loss(model, batch).total for batch in batches) / sum(map(task.targets, batches))
        total.backward()
        rate = learning_rate(step, schedule="linear", peak=0.01, warmup=2, steps=7)
        for name, weight in model.named_parameters():
            moved = weight.detach() - rate * task.rate_factors(model).get(name, 1.0) * weight.grad
            assert_close(toy.saved(step)[name], moved, rtol=1e-5, atol=1e-7, msg=f"{step} {name}")


def test_fresh_weights_follow_from_the_seed_alone():
    def weights(seed: int) -> dict[str, Tensor]:
        return build(Reverse(STRINGS, BLOCK, 1), replace(CONFIG, seed=seed), Accelerator())[0].model.state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert_close(again, first, rtol=0, atol=0)
    assert not torch.equal(first["output.weight"], other["output.weight"])


def test_dropout_is_drawn_anew_for_each_micro_batch_update_and_seed(tmp_path, monkeypatch):
    seen, loss = [], Reverse.loss
    monkeypatch.setattr(Reverse, "loss", lambda *given: seen.append(torch.initial_seed()) or loss(*given))
    for seed in (1, 2):
        Toy(tmp_path / str(seed), seed=seed).train()
    assert len(seen) == len(set(seen)) == 2 * 17  # windows of 3, 3, 1, 3, 3, 1 and 3 micro-batches


def test_training_and_evaluation_multiply_in_the_precision_that_is_asked_for(tmp_path, monkeypatch):
    seen: set[tuple[str, bool]] = set()

    def noting(name: str):
        original = getattr(Reverse, name)
        return lambda *given: seen.add((name, torch.is_autocast_enabled("cpu"))) or original(*given)

    for name in ("loss", "predict"):
        monkeypatch.setattr(Reverse, name, noting(name))
    for precision, narrow in (("bf16", True), ("fp32", False)):  # accelerate remembers the last, which others expect
        seen.clear()
        AcceleratorState._reset_state(reset_partial_state=True)
        Toy(tmp_path / precision, steps=1, warmup=1, precision=precision).train()
        assert seen == {("loss", narrow), ("predict", narrow)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Toy, Toy]:
    """Return the same run in one process and, through the launcher, in two: windows of 3, 3 and 1 micro-batches."""
    root = tmp_path_factory.mktemp("pair")
    one, two = Toy(root / "one", ema=0.7), Toy(root / "two", ema=0.7)
    ended = one.fork(partial(write_outputs, root / "one.outputs"))
    assert ended.codes == [0], ended.text
    flags = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    flags += "--num_cpu_threads_per_process 1 --main_process_port 0 -m recipes.reverse".split()
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *flags, *two.settings()],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return one, two


def test_two_processes_have_the_loss_curve_of_one(pair):
    one, two = pair
    losses, others = one.metrics("train/loss"), two.metrics("train/loss")
    assert list(losses) == list(others) == list(range(1, 8))
    assert max(abs(losses[step] / others[step] - 1) for step in losses) < 1e-5
    assert two.metrics("train/grad_norm") == pytest.approx(one.metrics("train/grad_norm"), rel=1e-4)
    assert two.metrics("train/epoch") == one.metrics("train/epoch")


@pytest.mark.parametrize("kind", ["model", "ema"])
def test_two_processes_end_near_the_weights_of_one(pair, kind):
    one, two = pair
    assert largest_difference(two.saved(7, kind), one.saved(7, kind)) < 1e-4


def test_the_rate_follows_the_schedule_of_updates_on_any_number_of_processes(pair):
    expected = {
        step: learning_rate(step, schedule="inverse_sqrt", peak=0.01, warmup=2, steps=7) for step in range(1, 8)
    }
    assert pair[0].metrics("train/lr") == pair[1].metrics("train/lr") == expected


def test_two_processes_score_every_example_once_and_the_same(pair):
    one, two = pair
    assert one.metrics("valid/exact") == two.metrics("valid/exact") and list(one.metrics("valid/exact")) == [3, 6, 7]
    reports = [json.loads((toy.out / "report.json").read_text()) for toy in pair]
    assert reports[0] == reports[1]


# Evaluation


def write_outputs(path: Path) -> None:
    """Write the outputs of each evaluation before they are scored."""
    original = Reverse.measure

    def measure(self: Reverse, split: str, outputs: Sequence[list[int]]) -> dict[str, float]:
        with path.open("a") as file:
            file.write(json.dumps(list(outputs)) + "\n")
        return original(self, split, outputs)

    Reverse.measure = measure


@pytest.mark.parametrize("count", [17, 1])
def test_evaluation_gathers_each_output_once_and_in_order(tmp_path, count):
    said = []
    for ranks in (1, 2):
        toy = Toy(tmp_path / str(ranks), replace(STRINGS, valid=count), steps=1, warmup=1)
        outputs = tmp_path / f"{ranks}.outputs"
        ended = toy.fork(partial(write_outputs, outputs), ranks=ranks)
        assert ended.codes == [0] * ranks, ended.text
        said.append([json.loads(line) for line in outputs.read_text().splitlines()])
    assert said[0] == said[1] and {len(outputs) for outputs in said[0]} == {count}
    assert len({str(output) for output in said[0][0]}) > 1 or count == 1


def test_evaluation_is_the_same_when_others_read_ahead():
    class Unreadable(Reverse):
        def batch(self, split, rows, epoch):
            raise InputError(f"nothing to read in {split}")

    torch.manual_seed(3)
    task = Reverse(STRINGS, BLOCK, 1)
    model = task.build()
    alone, ahead = (evaluate(task, model, "valid", Accelerator(), workers=workers) for workers in (0, 2))
    assert alone == ahead and alone[1]
    with pytest.raises(InputError, match="^nothing to read in valid$"):
        evaluate(Unreadable(STRINGS, BLOCK, 1), model, "valid", Accelerator(), workers=2)


class Careless(Reverse):
    """Loses or repeats an example, in its plan or in its outputs."""

    fault = ""

    def plan(self, split, epoch):
        plan = [list(rows) for rows in super().plan(split, epoch)]
        return {"plan loses": [plan[0][:3] + plan[0][4:], *plan[1:]], "plan repeats": [plan[0], *plan]}.get(
            self.fault, plan
        )

    def predict(self, split, model, batch):
        said = super().predict(split, model, batch)
        return {"loses": said[1:], "repeats": [*said, said[0]], "mistakes": [*said[1:], said[-1]]}.get(self.fault, said)


@pytest.mark.parametrize("fault", ["loses", "repeats", "mistakes", "plan loses", "plan repeats"])
def test_a_lost_or_repeated_example_is_an_error(fault):
    task = Careless(STRINGS, BLOCK, 1)
    model = task.build()
    evaluate(task, model, "valid", Accelerator())
    task.fault = fault
    with pytest.raises(RuntimeError, match="outputs of valid are not one for each of its"):
        evaluate(task, model, "valid", Accelerator())


def test_evaluation_drops_nothing_out_and_leaves_the_model_in_the_mode_it_came_in():
    block = replace(BLOCK, dropout=0.5)
    task = Reverse(replace(STRINGS, valid=40), block, 1)
    model, seen = task.build(), []
    task.measure = lambda split, outputs: seen.append(list(outputs)) or {}
    for training in (True, False):
        model.train(training)
        evaluate(task, model, "valid", Accelerator())
        assert all(module.training is training for module in model.modules())
    assert seen[0] == seen[1] and len(seen[0]) == 40
    # The same in training mode: were dropout on, this test would notice.
    model.eval = lambda: model.train()
    evaluate(task, model, "valid", Accelerator())
    assert seen[2] != seen[0]


def test_training_goes_on_after_validation_as_if_there_had_been_none(tmp_path):
    often = Toy(tmp_path / "often", evaluate_every=1, ema=0.5).train()
    never = Toy(tmp_path / "never", evaluate_every=7, ema=0.5).train()
    assert often.metrics("train/loss") == never.metrics("train/loss")
    assert_close(often.saved(7), never.saved(7), rtol=0, atol=0)
    assert often.steps() == never.steps() == list(range(1, 8))


class Telling(Reverse):
    """Says a weight instead of a string, and scores it."""

    def predict(self, split, model, batch):
        return [(row, float(model.output.bias[5])) for row in batch.rows]

    def measure(self, split, outputs):
        return {"exact": outputs[0]}

    def samples(self, split, outputs):
        return []


def test_validation_scores_the_moving_average_where_there_is_one(tmp_path):
    for kind, ema in (("ema", 0.5), ("model", 0.0)):
        toy = Toy(tmp_path / kind, ema=ema, evaluate_every=2).train(Telling(STRINGS, BLOCK, 1))
        told = {step: float(toy.saved(step, kind)["output.bias"][5]) for step in (2, 4, 6, 7)}
        assert toy.metrics("valid/exact") == told


def test_a_run_may_begin_with_the_weights_of_another(tmp_path):
    first = Toy(tmp_path / "first").train()
    given = str(tmp_path / "first" / "checkpoints" / "step-00000007")
    still = Toy(tmp_path / "still", start_from=given, lr=0.0, ema=0.5, seed=2).train()
    assert_close(still.saved(1), first.saved(7), rtol=0, atol=0)
    assert_close(still.saved(1, "ema"), first.saved(7))
    Toy(tmp_path / "moved", start_from=given).train()
    shutil.rmtree(tmp_path / "first")
    again = Toy(tmp_path / "moved", start_from=given, steps=9).train()  # needed at the start alone
    assert again.steps()[-2:] == [8, 9]


def test_weights_to_begin_with_that_are_not_there_or_another_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="weights.safetensors does not exist: the run has not ended"):
        Toy(tmp_path / "a", start_from=str(tmp_path / "weights.safetensors")).train()
    other = Toy(tmp_path / "other", block=replace(BLOCK, hidden_dim=20)).train()
    given = str(tmp_path / "other" / "checkpoints" / "step-00000007")
    with pytest.raises(InputError, match="does not hold the weights of this model: .*feed_forward"):
        Toy(tmp_path / "b", start_from=given).train()
    assert other.steps()[-1] == 7


class Unreadable(Reverse):
    """A task whose data cannot be read."""

    def prepare(self, folder: Path) -> None:
        raise InputError("nothing to read")


def test_a_first_start_that_fails_leaves_the_folder_to_other_settings(tmp_path):
    first = Toy(tmp_path / "run", seed=1)
    with pytest.raises(InputError, match="nothing to read"):
        first.train(Unreadable(STRINGS, BLOCK, 1))
    assert Toy(tmp_path / "run", seed=2).train().steps()[-1] == 7
    with pytest.raises(InputError, match="nothing to read"):
        Toy(tmp_path / "run", seed=2).train(Unreadable(STRINGS, BLOCK, 1))
    assert (tmp_path / "run" / "recipe.yaml").exists()  # a run that has begun stays what it is


# The optimizer


def test_only_matrices_decay(tmp_path):
    config = replace(CONFIG, weight_decay=0.1)
    task = Reverse(STRINGS, BLOCK, 1)
    state, _ = build(task, config, Accelerator())
    decay = {id(weight): group["weight_decay"] for group in state.optimizer.param_groups for weight in group["params"]}
    norms = [module for module in state.model.modules() if isinstance(module, nn.LayerNorm)]
    spared = {id(weight) for module in norms for weight in module.parameters()}
    spared |= {id(weight) for name, weight in state.model.named_parameters() if name.endswith("bias")}
    assert len(norms) > 4 and len(decay) == len(list(state.model.parameters()))
    for name, weight in state.model.named_parameters():
        assert decay[id(weight)] == (0 if id(weight) in spared else 0.1), name


def test_positions_and_tokens_before_the_patches_do_not_decay():
    block = BlockConfig(dim=16, num_heads=2, hidden_dim=32, position="learned", order="pre")
    kinds = {"vit": block, "swin": replace(block, position="relative")}
    for kind, block in kinds.items():
        shape = ImageModelConfig(kind=kind, image_size=(16, 16), block=block, vit=VitConfig(depth=2, patch_size=(4, 4)))
        model = build_model(shape, 3, channels=1)
        optimizer = make_optimizer(model, replace(CONFIG, weight_decay=0.1), {})
        decayed = {
            id(weight) for group in optimizer.param_groups if group["weight_decay"] for weight in group["params"]
        }
        for name, weight in model.named_parameters():
            matrix = weight.dim() > 1 and "position" not in name and name != "prefix"
            assert (id(weight) in decayed) == matrix, name


@pytest.mark.parametrize("clip", [0.01, 0])
def test_the_gradient_of_an_update_is_clipped_to_its_norm(tmp_path, clip):
    toy = Toy(tmp_path, steps=1, warmup=1, clip=clip).train()
    reached = torch.cat([gradient.flatten() for gradient in toy.gradient().values()]).norm()
    told = toy.metrics("train/grad_norm")[1]
    assert told > 0.1 and float(reached) == pytest.approx(clip or told, rel=1e-4)


def test_the_moving_average_is_the_recursion_it_says(tmp_path):
    toy = Toy(tmp_path, ema=0.3).train()
    torch.manual_seed(toy.config.seed)
    expected = {name: value.tolist() for name, value in Reverse(STRINGS, BLOCK, 1).build().named_parameters()}
    for step in range(1, 8):
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in toy.saved(step).items():
            expected[name] = _mix(decay, expected[name], value.tolist())
        average = {name: torch.tensor(value) for name, value in expected.items()}
        assert_close(toy.saved(step, "ema"), average, rtol=1e-5, atol=1e-6)


def _mix(decay: float, old: list | float, new: list | float) -> list | float:
    if isinstance(old, list):
        return [_mix(decay, *values) for values in zip(old, new, strict=True)]
    return decay * old + (1 - decay) * new


def test_the_moving_average_is_lent_to_the_model_and_taken_back():
    model = nn.Linear(3, 2)
    average, own = MovingAverage(model, 0.9), model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    with pytest.raises(ZeroDivisionError), average.applied(model):
        assert_close(model.weight.detach(), own, rtol=0, atol=0)
        _ = 1 / 0
    assert_close(model.weight.detach(), own + 1, rtol=0, atol=0)


def test_a_plan_without_examples_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Reverse, "plan", lambda task, split, epoch: [])
    with pytest.raises(InputError, match="the training data hold no example"):
        Toy(tmp_path).train()


def test_a_recorded_graph_takes_one_micro_batch_an_update_and_process():
    check_sharing(Accelerator(), 1, graphs=True)
    check_sharing(Accelerator(), 2, graphs=False)
    with pytest.raises(InputError, match="--train.cuda_graphs .* --train.accumulate 1, one for each process"):
        check_sharing(Accelerator(), 2, graphs=True)


# Gradients that are not finite


def test_all_ranks_leave_out_an_update_that_is_not_finite_on_one_and_go_on(tmp_path):
    toy = Toy(tmp_path / "run", accumulate=2, ema=0.5)
    ended = toy.fork(partial(children.change_losses, children.not_a_number, calls=[3], rank=1), ranks=2)
    assert ended.codes == [0, 0], ended.text
    for kind in ("model", "optimizer"):
        assert_close(toy.saved(3, kind), toy.saved(2, kind), rtol=0, atol=0)
        assert not torch.equal(*[next(iter(toy.saved(step, kind).values())) for step in (3, 4)])
    assert toy.metrics("train/skipped") == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1}
    assert list(toy.metrics("train/grad_norm")) == list(toy.metrics("train/loss")) == [1, 2, 4, 5, 6, 7]
    assert all(
        value.isfinite().all() for kind in ("model", "ema", "optimizer") for value in toy.saved(7, kind).values()
    )


def test_a_first_update_that_is_left_out_leaves_no_rubbish_in_the_momentum(tmp_path):
    toy = Toy(tmp_path / "run", accumulate=1, optimizer="sgd")
    ended = toy.fork(partial(children.change_losses, children.not_a_number, calls=[1]))
    assert ended.codes == [0], ended.text
    assert not any(value.any() for value in toy.saved(1, "optimizer").values())
    assert toy.metrics("train/skipped")[7] == 1
    assert any(value.any() for value in toy.saved(7, "optimizer").values())


def test_too_many_updates_that_are_not_finite_end_the_run_with_the_examples_of_the_last(tmp_path):
    toy = Toy(tmp_path / "run", accumulate=1, max_skipped=1, log_every=4, save_every=2, evaluate_every=7)
    ended = toy.fork(partial(children.change_losses, children.not_a_number, calls=[3, 4]))
    assert ended.codes == [2]
    (line,) = [line for line in ended.text.splitlines() if line.startswith("error")]
    assert "2 updates had a gradient that is not finite, more than --train.max_skipped 1" in line
    assert f"update 4, was made of the training examples {list(range(24, 32))}" in line
    assert toy.steps() == [2] and all(value.isfinite().all() for value in toy.saved(2).values())


# Checkpoints and the run folder


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep_last": 1, "keep_best": 1}, [4, 11]),
        ({"keep_last": 3, "keep_best": 1}, [4, 9, 10, 11]),
        ({"keep_last": 1, "keep_best": 2}, [4, 8, 11]),
        ({"keep_last": 1, "keep_best": 1, "keep_every": 5}, [4, 5, 10, 11]),
    ],
)
def test_the_last_the_best_and_each_so_manyth_checkpoint_stay(tmp_path, settings, kept):
    toy = Toy(tmp_path, steps=11, evaluate_every=2, **settings).train(Scripted({2: 0.1, 4: 0.9, 6: 0.2, 8: 0.5}))
    assert toy.steps() == kept


class Scripted(Reverse):
    """Scores what it is told to, one validation after the other."""

    def __init__(self, scores: dict[int, float]) -> None:
        super().__init__(STRINGS, BLOCK, 1)
        self.scores = iter(scores.values())

    def measure(self, split, outputs):
        return {"exact": next(self.scores, 0.0)}


def test_training_stops_after_so_many_validations_without_a_better_one_and_stays_stopped(tmp_path):
    scores = {1: 0.1, 2: 0.5, 3: 0.3, 4: 0.6, 5: 0.6, 6: 0.2, 7: 0.9}
    toy = Toy(tmp_path, evaluate_every=1, patience=2).train(Scripted(scores))
    assert toy.steps() == [1, 2, 3, 4, 5, 6] and toy.run.state.progress.best == [(0.6, 4)]
    assert Toy(tmp_path, evaluate_every=1, patience=2).train(Scripted({})).run.state.progress.step == 6


def test_more_patience_continues_a_run_that_stopped_early(tmp_path):
    Toy(tmp_path, evaluate_every=1, patience=1).train(Scripted({1: 0.5, 2: 0.4}))
    assert Toy(tmp_path, evaluate_every=1, patience=3).train(Scripted({3: 0.3, 4: 0.6})).steps()[-1] == 7


class TwoMetrics(Reverse):
    """Scores the same each time, and by another metric always better."""

    def __init__(self) -> None:
        super().__init__(STRINGS, BLOCK, 1)
        self.other = -5.0

    def measure(self, split, outputs):
        self.other += 0.1
        return {"exact": 0.9, "other": self.other}


def test_another_metric_to_monitor_has_a_best_and_a_patience_of_its_own(tmp_path):
    first = Toy(tmp_path, evaluate_every=1, patience=2).train(TwoMetrics()).run.state.progress
    assert first.best == [(0.9, 1)] and first.step == 3
    progress = Toy(tmp_path, evaluate_every=1, patience=2, monitor="other").train(TwoMetrics()).run.state.progress
    assert progress.step == 7 and progress.best[0][1] == 7 and progress.stale == 0


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_folder_of_another_configuration_is_refused_and_not_touched(tmp_path, capsys):
    Toy(tmp_path / "run").train()
    before = contents(tmp_path / "run")
    other = Toy(tmp_path / "run", replace(STRINGS, longest=4), lr=0.02, steps=9)
    with pytest.raises(SystemExit) as left:
        launch(Recipe, reverse.main, other.settings())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert left.value.code == 2
    assert "data.longest: 5 in the run, 4 asked for" in line and "train.lr: 0.01 in the run, 0.02 asked for" in line
    assert "train.steps" not in line and "choose another --train.out" in line
    assert contents(tmp_path / "run") == before


def test_only_what_may_change_is_changed_in_the_kept_configuration(tmp_path):
    Toy(tmp_path, steps=2).train()
    assert Toy(tmp_path, steps=4, workers=0, log_every=2).train().steps() == [1, 2, 3, 4]
    assert "steps: 4" in (tmp_path / "recipe.yaml").read_text()


def test_checkpoints_without_a_configuration_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"has checkpoints but no recipe\.yaml: choose another --train\.out"):
        open_run(tmp_path, Recipe())


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(Reverse, "prepare", lambda task, folder: pytest.fail("the task began to work"))
    with pytest.raises(SystemExit) as left:
        launch(Recipe, reverse.main, [f"--train.out={tmp_path / 'file' / 'run'}"])
    assert left.value.code == 2 and "cannot be written to" in capsys.readouterr().err


def test_a_metric_to_monitor_that_is_not_reported_is_named_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match="--train.monitor bleu is not reported: choose among exact"):
        Toy(tmp_path, monitor="bleu").train()
    toy = Toy(tmp_path).train()
    assert list(toy.metrics("valid/exact")) == [3, 6, 7]
    assert min(toy.metrics("train/loss")) == 1 and toy.metrics("train/lr")[4]
    assert toy.run.state.progress.best[0][1] > 3


def test_what_a_finished_run_does_not_report_is_named_too(tmp_path):
    finished = Toy(tmp_path).train()
    with pytest.raises(InputError, match="--train.monitor bleu is not reported: choose among exact"):
        changed = replace(finished.config, monitor="bleu")
        finish(Reverse(STRINGS, BLOCK, 1), finished.run, changed, Expected(), ["valid"])


@pytest.mark.parametrize(("precision", "able", "told"), [("bf16", False, 1), ("bf16", True, 0), ("fp32", False, 0)])
def test_bf16_is_told_to_be_slow_where_the_cpu_cannot(tmp_path, capsys, monkeypatch, precision, able, told):
    monkeypatch.setattr(loop, "has_bfloat16", lambda: able)
    AcceleratorState._reset_state(reset_partial_state=True)
    start(replace(CONFIG, precision=precision), tmp_path, Reverse(STRINGS, BLOCK, 1))
    AcceleratorState._reset_state(reset_partial_state=True)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("no instructions for bf16, which is slow here: --train.precision fp32") == told


def test_a_run_that_is_past_its_steps_says_so(tmp_path, capsys):
    Toy(tmp_path).train()
    Toy(tmp_path, steps=5, average=2).train()
    assert "after update 7, which is past --train.steps 5" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the signal may come in a destructor
def test_a_killed_reader_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    whole, batch = Toy(tmp_path / "whole").train(), Reverse.batch

    def killed(task: Reverse, split: str, rows: list[int], epoch: int) -> object:
        if epoch == 1 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(task, split, rows, epoch)

    parent, toy = os.getpid(), Toy(tmp_path / "run", workers=1)
    with monkeypatch.context() as patched:
        patched.setattr(Reverse, "batch", killed)
        with pytest.raises(InputError, match="a process that reads ahead has died .* lower --train.workers"):
            toy.train()
    (toy.out / ".tmp-half-recipe.yaml").write_text("left by a kill")
    with (toy.out / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe rubbish\n")
    toy.train()
    assert not list(toy.out.glob(".tmp-*")) and list(toy.metrics("train/loss")) == list(range(1, 8))
    assert_close(toy.saved(7), whole.saved(7), rtol=0, atol=0)


def test_training_goes_on_when_nobody_reads_what_it_says(tmp_path, monkeypatch):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    assert Toy(tmp_path).train().run.state.progress.step == 7
    sys.stderr.close()


def test_a_start_that_failed_leaves_nothing_that_another_would_find(tmp_path):
    class Keeping(Reverse):
        def prepare(self, folder: Path) -> None:
            super().prepare(folder)
            (folder / "vocabulary").write_text("of these settings")

    (tmp_path / "notes.txt").write_text("mine")
    toy = Toy(tmp_path, start_from=str(tmp_path / "nothing.safetensors"))
    with pytest.raises(InputError, match="nothing.safetensors does not exist"):
        toy.train(Keeping(STRINGS, BLOCK, 1))
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", ".lock", ".training.lock"}
    assert Toy(tmp_path, seed=5).train().steps()[-1] == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "--train.steps 0: choose 1 or more"),
        ({"warmup": 8}, "--train.warmup 8 is longer than --train.steps 7"),
        ({"warmup": 7, "schedule": "cosine"}, "--train.warmup 7 takes all --train.steps, and cosine ends at 0"),
        ({"average": 3, "keep_last": 2}, "--train.average 3 needs as many checkpoints, and --train.keep_last 2"),
        ({"average": 3, "average_of": "best"}, "--train.keep_best 1 keeps fewer"),
        ({"ema": 1.0}, "--train.ema 1.0 is a decay"),
        ({"betas": (0.9, 1.5)}, r"--train.betas \[0.9, 1.5\] are decays"),
        ({"eps": -1.0}, "--train.eps -1.0 must be 0 or more"),
        ({"cuda_graphs": True}, "--train.cuda_graphs records a compiled model: add --train.compile"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **settings)


def test_tensorboard_is_written_beside_the_metrics(tmp_path):
    Toy(tmp_path, steps=1, warmup=1, tensorboard=True).train()
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_a_compiled_model_has_the_losses_of_a_plain_one(tmp_path):
    block = replace(BLOCK, dropout=0.0)
    plain = Toy(tmp_path / "plain", block=block, steps=2, evaluate_every=2).train()
    compiled = Toy(tmp_path / "compiled", block=block, steps=2, evaluate_every=2, compile=True)
    ended = compiled.fork()
    assert ended.codes == [0], ended.text
    assert compiled.metrics("train/loss") == pytest.approx(plain.metrics("train/loss"), rel=1e-5)
    assert compiled.metrics("valid/exact") == plain.metrics("valid/exact")
    assert largest_difference(compiled.saved(2), plain.saved(2)) < 1e-4


def test_graphs_are_recorded_of_one_shape_and_only_where_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **how: asked.append(how) or model)
    plain = Toy(tmp_path / "plain", steps=2, compile=True, accumulate=1).train()
    graphs = Toy(tmp_path / "graphs", steps=2, compile=True, cuda_graphs=True, accumulate=1).train()
    assert asked == [{"dynamic": True}, {"dynamic": True}, {"dynamic": False, "mode": "reduce-overhead"}]
    assert largest_difference(plain.saved(2), graphs.saved(2)) == 0
