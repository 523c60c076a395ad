"""What the image task tells the loop: its batches, its losses against formulas in float64, and where it starts from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from recipes.optimizer import make_optimizer
from recipes.train_config import TrainConfig
from tasks.errors import InputError
from tasks.image_classification.augment import AugmentConfig, TransformConfig, normalize
from tasks.image_classification.data import Images, ImageSource
from tasks.image_classification.distill import DistillConfig, Teacher
from tasks.image_classification.model import ImageModelConfig, build_model
from tasks.image_classification.pretrained import PretrainedConfig
from tasks.image_classification.task import Batch, ImageClassification, LossConfig, label_loss
from tasks.image_classification.vit import VitConfig
from transformer_core import BlockConfig, resize_grid

CLASSES = ("ant", "bee", "cat")
BLOCK = BlockConfig(dim=16, num_heads=2, hidden_dim=24, activation="gelu", position="learned", order="pre", dropout=0.0)
MODEL = ImageModelConfig(image_size=(8, 12), block=BLOCK, vit=VitConfig(depth=2, patch_size=(4, 4)))
DISTILLED = replace(MODEL, vit=replace(MODEL.vit, distillation_token=True))
STILL = AugmentConfig(crop="none", flip=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Folders of 11 images of three classes, and of 7 for validation, of many colours and several sizes."""
    folder, generator = tmp_path_factory.mktemp("pictures"), torch.Generator().manual_seed(3)
    for split, counts in (("train", (5, 2, 4)), ("valid", (1, 4, 2))):
        for name, count in zip(CLASSES, counts, strict=True):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                noise = torch.rand(8 + number % 3, 12 + number % 2, 3, generator=generator)
                values = 255 * (torch.rand(3, generator=generator) + noise) / 2
                Image.fromarray(values.byte().numpy()).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def make(pictures, tmp_path):
    """Make a task on these pictures; `data`, `model` and so on are what differs."""

    def make(
        model: ImageModelConfig = MODEL,
        *,
        data: dict | None = None,
        augment: AugmentConfig = STILL,
        transform: TransformConfig | None = None,
        loss: LossConfig | None = None,
        **options,
    ) -> ImageClassification:
        sources = {name: [ImageSource(folder=name)] for name in ("train", "valid")}
        images = Images(**{"folder": str(pictures), "batch": 4} | sources | (data or {}))
        task = ImageClassification(
            images, model, augment, transform or TransformConfig(), loss or LossConfig(), **options
        )
        task.prepare(tmp_path / "run")
        return task

    return make


def scrambled(model: nn.Module) -> nn.Module:
    """Large random weights everywhere, in the heads too."""
    for weight in model.parameters():
        nn.init.normal_(weight, 0.0 if weight.dim() > 1 else 0.5, 0.5 if weight.dim() > 1 else 0.2)
    return model


def a_batch(task: ImageClassification, rows: tuple[int, ...] = (6, 0, 9, 3, 10)) -> Batch:
    return task.batch("train", rows, 0)


# The plan and the batches


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_plan_follows_from_the_epoch_alone_and_no_image_is_lost(make, repeats):
    task, again = (make(augment=replace(STILL, repeats=repeats)) for _ in range(2))
    plans = [task.plan("train", epoch) for epoch in range(2 * repeats)]
    assert plans == [again.plan("train", epoch) for epoch in range(2 * repeats)]
    assert plans[0] == task.plan("train", 0) != plans[1]
    for cycle in (plans[:repeats], plans[repeats:]):
        assert sorted(row for plan in cycle for rows in plan for row in rows) == sorted([*range(11)] * repeats)
    assert max(len(rows) for plan in plans for rows in plan) == 4
    assert task.plan("valid", 0) == task.plan("valid", 5) == [[0, 1, 2, 3], [4, 5, 6]]


def test_a_training_batch_follows_from_its_epoch_and_rows_and_each_copy_of_an_image_differs(make):
    augment = AugmentConfig(min_scale=0.3, color_jitter=0.4, erasing=0.3, repeats=2)
    task, rows = make(augment=augment), [4, 7, 4, 7]
    first, again, later = (task.batch("train", rows, epoch) for epoch in (3, 3, 4))
    assert first.rows == again.rows == rows and first.seed == again.seed != later.seed
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, later.images)
    assert first.images.dtype == torch.uint8 and first.images.shape == (4, 3, 8, 12)
    assert not torch.equal(first.images[0], first.images[2]) and not torch.equal(first.images[1], first.images[3])
    assert first.labels.tolist() == [task.images.label("train", row) for row in rows]
    assert task.targets(first) == 4


def test_each_micro_batch_of_an_epoch_is_mixed_by_a_seed_of_its_own(make):
    task = make()
    assert len({task.batch("train", rows, 3).seed for rows in ([4, 7], [5, 7], [6, 7])}) == 3


def test_evaluation_sees_the_images_as_they_are_whatever_the_augmentation(make):
    strong = make(augment=AugmentConfig(min_scale=0.1, policy="rand", erasing=1.0, mixup=0.8, cutmix=1.0))
    plain = make()
    for epoch in (0, 1):
        assert torch.equal(strong.batch("valid", range(7), epoch).images, plain.batch("valid", range(7), 0).images)
    assert not torch.equal(a_batch(strong).images, a_batch(plain).images)


# The loss of labels


def smoothed(targets: Tensor, smoothing: float) -> Tensor:
    return targets.double() * (1 - smoothing) + smoothing / targets.size(1)


def by_hand(kind: str, logits: Tensor, targets: Tensor) -> Tensor:
    """Sum both losses from their definitions, in float64."""
    logits = logits.double()
    if kind == "cross_entropy":
        return -(targets * (logits - logits.logsumexp(1, keepdim=True))).sum()
    return -(targets * logits.sigmoid().log() + (1 - targets) * (-logits).sigmoid().log()).sum()


@pytest.mark.parametrize("kind", ["cross_entropy", "binary"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_of_labels_is_a_sum_over_the_images_with_smoothed_targets(kind, smoothing):
    config, logits = LossConfig(kind=kind, smoothing=smoothing), torch.randn(5, 3) * 3
    targets = F.one_hot(torch.tensor([2, 0, 1, 1, 2]), 3).float()
    targets[3:] = torch.tensor([[0.25, 0.75, 0.0], [0.1, 0.3, 0.6]])  # mixed
    soft, total = smoothed(targets, smoothing), label_loss(logits, targets, config)
    theirs = F.cross_entropy if kind == "cross_entropy" else F.binary_cross_entropy_with_logits
    assert_close(total.double(), theirs(logits.double(), soft, reduction="sum"), rtol=1e-6, atol=0)
    assert_close(total.double(), by_hand(kind, logits, soft), rtol=1e-6, atol=0)
    parts = [label_loss(logits[rows], targets[rows], config) for rows in (slice(0, 2), slice(2, 5))]
    assert_close(sum(parts), total, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["cross_entropy", "binary"])
def test_the_loss_of_a_batch_is_that_of_its_normalised_images_and_its_labels(make, kind):
    transform = TransformConfig(mean=(0.2, 0.4, 0.6), std=(0.3, 0.2, 0.5))
    task = make(transform=transform, loss=LossConfig(kind=kind, smoothing=0.2))
    model, batch = scrambled(task.build()).eval(), a_batch(task)
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    logits = model((batch.images / 255 - mean) / std)
    expected = by_hand(kind, logits, smoothed(F.one_hot(batch.labels, 3), 0.2))
    assert_close(task.loss(model, batch).total.double(), expected, rtol=1e-5, atol=0)
    assert task.loss(model, batch).report == {}


def test_mixed_images_have_mixed_labels(make):
    seen: list[Tensor] = []

    def colour(images: Tensor) -> Tensor:
        seen.append(images)
        return 5 * images.mean((2, 3))

    task = make(augment=replace(STILL, cutmix=1.0), loss=LossConfig(smoothing=0))
    batch = a_batch(task)
    total = task.loss(colour, batch).total
    before = normalize(batch.images, (0.5,), (0.5,))
    (images,), rolled = seen, before.roll(1, 0)
    kept = (images == before).all(1)
    assert torch.equal(torch.where(kept[:, None], before, rolled), images) and 0 < kept[0].float().mean() < 1
    share = kept.float().mean((1, 2))
    likelihoods = colour(images).log_softmax(1)
    own, other = (likelihoods.gather(1, labels[:, None])[:, 0] for labels in (batch.labels, batch.labels.roll(1)))
    assert_close(total, -(share * own + (1 - share) * other).sum())
    assert abs(float(total + own.sum())) > 0.01, "other labels than its own would not be noticed"


# Distillation


def teach(task: ImageClassification, make, distill: DistillConfig, **fields) -> tuple[ImageClassification, nn.Module]:
    """Return a task like the first with a teacher, and the bare model of it."""
    bare = scrambled(build_model(MODEL, 3, channels=3)).requires_grad_(False)
    bare.head.bias -= bare(2 * torch.rand(64, 3, 1, 1).expand(-1, -1, 8, 12) - 1).mean(0)  # of many opinions
    centre = torch.full((3,), 0.5), torch.full((3,), 0.5)
    teacher = Teacher(bare, CLASSES, image_size=MODEL.image_size, own=centre, given=centre)
    return make(task.model, distill=distill, teacher=teacher, loss=task.loss_config, **fields), bare


@pytest.mark.parametrize("model", [MODEL, DISTILLED], ids=["one head", "two heads"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_loss_with_a_teacher_is_that_of_the_formula_in_float64(make, model, kind):
    config = DistillConfig(kind=kind, weight=0.3, temperature=2.5)
    task, bare = teach(make(model, loss=LossConfig(smoothing=0.2)), make, config)
    student, batch = scrambled(task.build()).train(), a_batch(task)
    images = batch.images / 127.5 - 1
    theirs, ours = bare.eval()(images).double(), student(images).double()
    own, taught = ours.unbind(1) if model is DISTILLED else (ours, ours)
    assert theirs.argmax(1).tolist() != batch.labels.tolist() and theirs.argmax(1).unique().numel() > 1
    if kind == "hard":
        lesson = by_hand("cross_entropy", taught, F.one_hot(theirs.argmax(1), 3).double())
    else:
        p, q = (theirs / 2.5).softmax(1), (taught / 2.5).softmax(1)
        lesson = 2.5**2 * (p * (p / q).log()).sum()
    labels = by_hand("cross_entropy", own, smoothed(F.one_hot(batch.labels, 3), 0.2))
    loss = task.loss(student, batch)
    assert_close(loss.total.double(), 0.7 * labels + 0.3 * lesson, rtol=1e-5, atol=0)
    told = {name: value.double() for name, value in loss.report.items()}
    assert_close(told, {"label_loss": labels, "teacher_loss": lesson}, rtol=1e-5, atol=0)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_one_head_of_a_distilled_model_learns_the_labels_and_the_other_from_the_teacher(make, weight):
    task, bare = teach(make(DISTILLED), make, DistillConfig(weight=weight))
    student = task.build().train()
    task.loss(student, a_batch(task)).total.backward()
    own, taught = student.head.weight.grad, student.distillation_head.weight.grad
    assert (own.abs().sum() > 0) == (weight < 1) and (taught.abs().sum() > 0) == (weight > 0)
    assert all(weight.grad is None for weight in bare.parameters()) and not bare.training


def test_both_heads_learn_the_labels_where_nobody_teaches(make):
    task = make(DISTILLED, loss=LossConfig(smoothing=0.2))
    student, batch = scrambled(task.build()).train(), a_batch(task)
    heads = student(batch.images / 127.5 - 1).unbind(1)
    targets = smoothed(F.one_hot(batch.labels, 3), 0.2)
    expected = sum(by_hand("cross_entropy", logits, targets) for logits in heads) / 2
    assert_close(task.loss(student, batch).total.double(), expected, rtol=1e-5, atol=0)


def test_the_teacher_sees_the_images_in_its_own_size_mean_and_deviation():
    own, given = TransformConfig(mean=(0.1, 0.2, 0.7), std=(0.3, 0.5, 0.9)), TransformConfig(mean=(0.5,), std=(0.25,))
    pixels = torch.randint(256, (5, 3, 8, 12), dtype=torch.uint8)
    as_tensors = [tuple(torch.tensor(values).expand(3) for values in (each.mean, each.std)) for each in (own, given)]
    for size in ((8, 12), (16, 20), (4, 8)):
        teacher = Teacher(nn.Identity(), CLASSES, image_size=size, own=as_tensors[0], given=as_tensors[1])
        direct = normalize(pixels, own.mean, own.std)
        direct = F.interpolate(direct, size, mode="bicubic", antialias=True) if size != (8, 12) else direct
        assert_close(teacher(normalize(pixels, given.mean, given.std)), direct, rtol=1e-5, atol=1e-5)


def test_the_teacher_sees_the_images_as_they_are_mixed(make):
    task, _ = teach(make(), make, DistillConfig(), augment=replace(STILL, mixup=1.0))
    student, batch, seen = task.build(), a_batch(task), []
    for model in (student, task.teacher):
        model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    task.loss(student, batch)
    assert torch.equal(*seen) and not torch.equal(seen[0], normalize(batch.images, (0.5,), (0.5,)))


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        (("ant", "bee"), "cat only the images have"),
        (("ant", "bee", "cat", "dog"), "dog only the teacher knows"),
        (("ant", "bee", "dog"), "dog only the teacher knows; cat only the images have"),
        (("bee", "ant", "cat"), "the same in another order"),
    ],
)
def test_a_teacher_of_other_classes_is_refused_with_the_difference(make, classes, difference):
    centre = torch.zeros(3), torch.ones(3)
    teacher = Teacher(
        build_model(MODEL, len(classes), channels=3), classes, image_size=(8, 12), own=centre, given=centre
    )
    with pytest.raises(InputError, match=rf"--distill\.teacher runs/a .*other classes.*\({difference}\)"):
        make(distill=DistillConfig(teacher="runs/a"), teacher=teacher)


# Where a model starts from


@pytest.fixture
def trained(tmp_path) -> tuple[Path, dict[str, Tensor]]:
    """A file of the weights of a model for 5 classes on a grid of 2 x 3, and what it holds."""
    model = scrambled(build_model(MODEL, 5, channels=3))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", model.state_dict()


# Images on the device.


@pytest.mark.parametrize(("channels", "colours"), [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize(
    "augment",
    [STILL, replace(STILL, flip=True), AugmentConfig(crop="pad", padding=3), replace(STILL, crop="pad", repeats=2)],
)
def test_images_on_the_device_are_those_of_the_loaders_to_the_bit(make, augment, channels, colours):
    transform = TransformConfig(mean=(0.1, 0.5, 0.9)[:colours], std=(0.2, 0.3, 0.4)[:colours])
    settings = {"augment": augment, "transform": transform}
    plain = make(data={"channels": channels}, **settings)
    resident = make(data={"channels": channels, "on_device": True}, **settings)
    model = scrambled(plain.build())
    for epoch in range(3):
        rows = [3, 0, 3, 10, 5, 5]
        one, other = (task.batch("train", rows, epoch) for task in (plain, resident))
        assert other.images.shape == (6, 4)
        assert torch.equal(resident.resident.pixels(other.images), one.images)
        assert torch.equal(plain.loss(model, one).total, resident.loss(model, other).total)
    assert torch.equal(plain.batch("valid", [2, 6], 0).images, resident.batch("valid", [2, 6], 0).images)


def test_images_on_the_device_are_read_once_and_by_no_loader(make, monkeypatch):
    task, seen = make(data={"on_device": True}), []
    monkeypatch.setattr(task.resident, "read", lambda row: seen.append(row) or task.images.image("train", row))
    batch, model = task.batch("train", [4, 2], 0), task.build()
    assert seen == []
    task.loss(model, batch)
    task.loss(model, task.batch("train", [7], 1))
    assert sorted(seen) == [0, *range(11)]  # the first also says how many channels there are


def test_images_that_no_memory_holds_are_refused(make):
    task = make(data={"on_device": True})
    task.resident.count = 10**13
    with pytest.raises(InputError, match="on_device=True wants .* GB on cpu .*: choose --data.on_device false"):
        task.loss(task.build(), task.batch("train", [1], 0))


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(),
        replace(STILL, policy="rand"),
        replace(STILL, color_jitter=0.1),
        replace(STILL, erasing=0.1),
        replace(STILL, start_size=(4, 4), grow_epochs=2),
    ],
    ids=["crop", "policy", "color_jitter", "erasing", "start_size"],
)
def test_what_a_device_does_not_do_to_images_is_refused_before_they_are_read(make, augment, request):
    name = request.node.callspec.id
    with pytest.raises(InputError, match=rf"on_device=True .* augment\.{name} asks for more: choose augment\.crop pad"):
        make(augment=augment, data={"on_device": True})


# Images that grow.


@pytest.mark.parametrize("model", [MODEL, replace(MODEL, kind="swin", block=replace(BLOCK, position="relative"))])
def test_training_images_grow_to_the_size_of_the_model(make, model):
    task = make(
        replace(model, image_size=(16, 24)),
        augment=replace(STILL, start_size=(8, 8), grow_epochs=4),
        data={"keep": True},
    )
    network = task.build().train()
    sizes = []
    for epoch in range(6):
        batch = task.batch("train", [0, 3], epoch)
        sizes.append(tuple(batch.images.shape[2:]))
        assert task.loss(network, batch).total.isfinite()
    assert sizes == [(8, 8), (8, 12), (12, 16), (16, 20), (16, 24), (16, 24)]
    assert task.batch("valid", [0], 0).images.shape[2:] == (16, 24)


def test_positions_that_cannot_be_stretched_are_refused_before_training(make):
    turned = replace(MODEL, block=replace(BLOCK, position="rotary"))
    with pytest.raises(InputError, match="start_size=.* stretches positions, and model.block.position is rotary"):
        make(turned, augment=replace(STILL, start_size=(4, 4), grow_epochs=2))
    with pytest.raises(ValueError, match="start_size=None cannot be used: choose it together with grow_epochs"):
        replace(STILL, grow_epochs=2)


def begun(task: ImageClassification) -> nn.Module:
    """Return a model as a new run begins with it."""
    model = task.build()
    task.begin(model)
    return model


def test_a_model_of_other_classes_and_resolution_starts_from_the_backbone(make, trained):
    path, tensors = trained
    larger = replace(MODEL, image_size=(12, 20))
    task = make(larger, pretrained=PretrainedConfig(path=str(path), grid=(2, 3)))
    model = begun(task).state_dict()
    said = "\n".join(str(cell) for column in task.tables()[1].columns for cell in column.cells)
    assert "head.weight starts at zero: the file has [5, " in said and "head.bias starts at zero" in said
    assert "positions stretched from a grid of [2, 3] to [3, 5]" in said
    assert model.keys() == tensors.keys()
    for name, tensor in model.items():
        if name.startswith("head."):
            assert len(tensor) == 3 and (tensor == 0).all()
        elif name == "position":
            assert_close(tensor, resize_grid(tensors[name], (2, 3), (3, 5), prefix=1))
        else:
            assert torch.equal(tensor, tensors[name]), name


def test_the_head_of_the_same_number_of_classes_is_taken_over(make, trained, tmp_path):
    path = tmp_path / "same.safetensors"
    model = scrambled(build_model(MODEL, 3, channels=3))
    save_file(model.state_dict(), path)
    task = make(pretrained=PretrainedConfig(path=str(path)))
    built = begun(task)
    assert len(task.tables()) == 1  # of the images
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in built.state_dict().items())


def test_a_pth_file_gives_the_same_model(make, trained, tmp_path):
    path, tensors = trained
    torch.save({"state_dict": {f"module.{name}": value for name, value in tensors.items()}}, tmp_path / "a.pth")
    models = [begun(make(pretrained=PretrainedConfig(path=str(file)))) for file in (path, tmp_path / "a.pth")]
    assert_close(*[model.state_dict() for model in models], rtol=0, atol=0)
    assert torch.equal(models[0].encoder.norm.weight, tensors["encoder.norm.weight"])


# The optimizer


def decays(name: str, weight: Tensor) -> bool:
    return weight.dim() > 1 and name not in ("prefix", "position")


def groups_of(model: nn.Module, config: TrainConfig, factors: dict[str, float]) -> dict[str, dict]:
    """Return the group of each trained weight by its name."""
    optimizer = make_optimizer(model, config, factors)
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {names[id(weight)]: group for group in optimizer.param_groups for weight in group["params"]}


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_matrices_alone_decay_and_the_momentum_of_sgd_is_the_first_beta(make, kind):
    task = make()
    model = task.build()
    config = TrainConfig(optimizer=kind, weight_decay=0.07, betas=(0.83, 0.97), eps=1e-5, lr=0.2)
    groups = groups_of(model, config, {})
    assert groups.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        assert groups[name]["weight_decay"] == (0.07 if decays(name, weight) else 0.0), name
        assert groups[name]["factor"] == 1.0 and groups[name]["lr"] == 0.2
        own = groups[name]["momentum"] if kind == "sgd" else groups[name]["betas"]
        assert own == (0.83 if kind == "sgd" else (0.83, 0.97))


def test_layer_decay_gives_each_weight_its_factor_and_a_frozen_one_needs_no_gradient(make):
    task = make(pretrained=PretrainedConfig(layer_decay=0.5))
    model = task.build()
    groups = groups_of(model, TrainConfig(weight_decay=0.07), task.rate_factors(model))
    assert groups.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        part = name.split(".")[2] if name.startswith("encoder.blocks") else name.split(".")[0]
        expected = {"0": 0.25, "1": 0.5, "encoder": 1.0, "head": 1.0}.get(part, 0.125)
        assert groups[name]["factor"] == expected, name
        assert groups[name]["weight_decay"] == (0.07 if decays(name, weight) else 0.0), name
    task = make(pretrained=PretrainedConfig(freeze=True))
    model = task.build()
    assert groups_of(model, TrainConfig(), task.rate_factors(model)).keys() == {"head.weight", "head.bias"}
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {"head.weight", "head.bias"}


def test_frozen_features_are_those_of_evaluation(make):
    drop = {name: 0.5 for name in ("dropout", "attention_dropout", "hidden_dropout", "drop_path")}
    config = replace(MODEL, block=replace(BLOCK, **drop), vit=replace(MODEL.vit, patch_dropout=0.5))
    images, same = torch.rand(2, 3, 8, 12), {}
    for freeze in (False, True):
        model = scrambled(make(config, pretrained=PretrainedConfig(freeze=freeze)).build())
        same[freeze] = torch.equal(model.train()(images), model.eval()(images))
    assert same == {False: False, True: True}


def test_less_is_better_of_loss_and_calibration_error_alone():
    assert ImageClassification.falling == {"loss", "ece"}


# What does not go together


@pytest.mark.parametrize("settings", [{"freeze": True}, {"layer_decay": 0.8}])
def test_what_is_for_trained_weights_wants_some(make, settings):
    with pytest.raises(InputError, match="freeze and layer_decay .* --pretrained.path"):
        begun(make(pretrained=PretrainedConfig(**settings)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"model": replace(MODEL, image_size=(9, 12))},
            r"image_size=\[9, 12\] cannot be cut into patches of \[4, 4\] pixels",
        ),
        (
            {"data": {"channels": 1}, "transform": TransformConfig(mean=(0.1, 0.2, 0.3), std=(1, 1, 1))},
            "mean=.*channels, 1",
        ),
        ({"augment": AugmentConfig(repeats=3)}, "batch=4 cannot be used: choose a multiple of the repeats, 3"),
        ({"augment": AugmentConfig(repeats=12), "data": {"batch": 12}}, "repeats=12 cannot be used: .* images, 11"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_data_are_read_unless_it_needs_them(
    make, tmp_path, change, words
):
    with pytest.raises(InputError, match=words):
        make(**change)
    assert (tmp_path / "run").exists() == ("images, 11" in words)


def test_one_class_cannot_be_told_from_others(tmp_path):
    (tmp_path / "train").mkdir()
    for number in range(4):
        (tmp_path / "train" / "ant").mkdir(exist_ok=True)
        Image.new("RGB", (8, 12)).save(tmp_path / "train" / "ant" / f"{number}.png")
    data = Images(
        folder=str(tmp_path), train=[ImageSource(folder="train")], valid=[ImageSource(folder="train")], batch=2
    )
    task = ImageClassification(data, MODEL, STILL, TransformConfig(), LossConfig())
    with pytest.raises(InputError, match="all training images are of one class, ant"):
        task.prepare(tmp_path / "run")
