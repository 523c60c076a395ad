"""Image classification as the training loop sees it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from tasks.errors import InputError
from tasks.image_classification.augment import (
    AugmentConfig,
    TransformConfig,
    apply,
    evaluation_transform,
    mix_batch,
    normalize,
    training_size,
    training_transform,
)
from tasks.image_classification.data import Images, LabelledImages
from tasks.image_classification.distill import DistillConfig, Teacher, distillation_loss
from tasks.image_classification.evaluate import Prediction, measure
from tasks.image_classification.model import ImageModelConfig, build_model, patch_pixels, without_dropout
from tasks.image_classification.plan import augmentation_seed, check_plan, planned_rows
from tasks.image_classification.pretrained import PretrainedConfig, fit_pretrained, rate_factors, read_tensors
from tasks.image_classification.resident import ResidentImages, check_resident
from tasks.names import difference
from tasks.task import Loss, Split, Task


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What training minimises."""

    kind: Literal["cross_entropy", "binary"] = "cross_entropy"
    """One class of all, or each class by itself, yes or no (Beyer et al. 2020), which suits mixed images."""
    smoothing: float = 0.1
    """Label smoothing: share of the label that is spread over all classes."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing} is no share: choose 0 or more, and less than 1.")


class Batch(NamedTuple):
    """A micro-batch of images of one size."""

    rows: list[int]
    """The examples, by their row in the split."""
    images: Tensor
    """(batch, channels, height, width) uint8; of training images on the device their `ResidentImages.views`."""
    labels: Tensor
    """(batch,) places of the classes."""
    seed: int
    """Seed from which images are mixed in training."""


class ImageClassification(Task[Batch]):
    """Say what is in an image: data, model, augmentation, loss and scores."""

    falling = frozenset({"loss", "ece"})
    unit = "images"
    ragged = False

    def __init__(
        self,
        data: Images,
        model: ImageModelConfig,
        augment: AugmentConfig,
        transform: TransformConfig,
        loss: LossConfig,
        *,
        pretrained: PretrainedConfig | None = None,
        distill: DistillConfig | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.data, self.model, self.augment, self.transform, self.loss_config = data, model, augment, transform, loss
        self.pretrained, self.distill = pretrained or PretrainedConfig(), distill or DistillConfig()
        self.teacher = teacher
        self.changes: Table | None = None
        self.resident: ResidentImages | None = None
        try:
            with torch.device("meta"):  # the settings of a model are tried before data are read
                build_model(model, 2, channels=data.channels)
            self.train_transforms = {
                size: training_transform(augment, transform, size)
                for size in map(self._size, range(augment.grow_epochs + 1))
            }
            self.test_transform = evaluation_transform(transform, model.image_size)
            normalize(torch.zeros(1, data.channels, 1, 1, dtype=torch.uint8), transform.mean, transform.std)
            if augment.start_size is not None and model.block.position not in ("learned", "none", "relative"):
                raise ValueError(
                    f"start_size={list(augment.start_size)} stretches positions, and model.block.position is "
                    f"{model.block.position}: choose learned or none."
                )
            check_plan(augment.repeats, data.batch, augment.repeats)
            if data.on_device:
                check_resident(augment)
        except ValueError as error:
            raise InputError(str(error)) from None

    def _size(self, epoch: int) -> tuple[int, int]:
        """Return height and width of the training images of an epoch."""
        return training_size(self.augment, self.model.image_size, patch_pixels(self.model), epoch)

    def prepare(self, folder: Path) -> None:
        """Open the images and keep the names of the classes in the run folder."""
        self.images = LabelledImages(self.data, folder)
        if len(self.images.classes) < 2:
            raise InputError(f"all training images are of one class, {self.images.classes[0]}: give two, or more.")
        if self.data.on_device:
            read, count = partial(self.images.image, "train"), self.images.sizes["train"]
            self.resident = ResidentImages(read, count, self.augment, self.transform, self.model.image_size)
        if self.teacher is not None:
            self._check_classes(self.teacher.classes)
        try:
            check_plan(self.images.sizes["train"], self.data.batch, self.augment.repeats)
        except ValueError as error:
            raise InputError(f"the training images cannot be cut into batches: {error}") from None

    def digest(self) -> str:
        """Hash the names and classes of the images to train and validate on."""
        return self.images.digest()

    def _check_classes(self, theirs: Sequence[str]) -> None:
        """Raise InputError where the logits of the teacher mean other classes."""
        own = self.images.classes
        if list(theirs) == own:
            return
        differing = difference(theirs, own, "only the teacher knows", "only the images have")
        raise InputError(
            f"--distill.teacher {self.distill.teacher} was trained on other classes than those of the images "
            f"({differing or 'the same in another order'}): choose a teacher with the same classes."
        )

    def tables(self) -> list[Any]:
        """Return what images there are, which were left out, and what was changed in pretrained weights."""
        further = (self.images.report, self.changes)
        return [self.images.table(), *(table for table in further if table is not None and table.row_count)]

    def build(self) -> nn.Module:
        """Return a fresh model for the classes of the run."""
        model = without_dropout(self.model) if self.pretrained.freeze else self.model
        return build_model(model, len(self.images.classes), channels=self.data.channels)

    def begin(self, model: nn.Module) -> None:
        """Load the pretrained weights. Raises InputError where there are none, and settings that want some."""
        if not self.pretrained.path:
            if self.pretrained.freeze or self.pretrained.layer_decay < 1:
                raise InputError(
                    "freeze and layer_decay are for weights that have learned something: name them, --pretrained.path."
                )
            return
        fitted = fit_pretrained(model, read_tensors(Path(self.pretrained.path)), grid=self.pretrained.grid)
        model.load_state_dict(fitted.tensors)
        self.changes = Table(title=f"Changed to fit: {self.pretrained.path}", show_header=False)
        for line in fitted.said:
            self.changes.add_row(line)

    def rate_factors(self, model: nn.Module) -> Mapping[str, float]:
        """Train the first blocks more slowly than the last, or the head alone, as `pretrained` says."""
        return rate_factors(model, self.pretrained)

    def plan(self, split: Split, epoch: int) -> list[list[int]]:
        """Shuffle the training images anew each epoch; take the others as they come."""
        count, size = self.images.sizes[split], self.data.batch
        if split == "train":
            return planned_rows(count, size, self.augment.repeats, self.data.seed, epoch)
        return [list(range(begin, min(begin + size, count))) for begin in range(0, count, size)]

    def batch(self, split: Split, indices: Sequence[int], epoch: int) -> Batch:
        """Read, decode and augment some images."""
        read = partial(self.images.image, split)
        if split == "train":
            seeds = self._seeds(indices, epoch)
            if self.resident is not None:
                images = self.resident.views(indices, seeds)
            else:
                augment = self.train_transforms[self._size(epoch)]
                images = torch.stack(
                    [apply(augment, read(row), seed) for row, seed in zip(indices, seeds, strict=True)]
                )
        else:
            images = torch.stack([self.test_transform(read(row)) for row in indices])
        labels = torch.tensor([self.images.label(split, row) for row in indices])
        first = indices[0] if indices else 0
        return Batch(list(indices), images, labels, augmentation_seed(self.data.seed, epoch, first, -1))

    def _seeds(self, rows: Sequence[int], epoch: int) -> list[int]:
        """Return the seed of each image's augmentation; an image that comes again has another."""
        seen: Counter[int] = Counter()
        seeds: list[int] = []
        for row in rows:
            seeds.append(augmentation_seed(self.data.seed, epoch, row, seen[row]))
            seen[row] += 1
        return seeds

    def targets(self, batch: Batch) -> int:
        """Count images."""
        return len(batch.rows)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Sum the loss over the images, mixed as the augmentation says, with the teacher's share if there is one."""
        classes, config = len(self.images.classes), self.distill
        pixels = batch.images if self.resident is None else self.resident.pixels(batch.images)
        images = normalize(pixels, self.transform.mean, self.transform.std)
        targets = F.one_hot(batch.labels, classes).to(images.dtype)
        images, targets = mix_batch(images, targets, self.augment, batch.seed)
        logits = model(images).float()
        own, taught = logits.unbind(1) if logits.dim() == 3 else (logits, logits)
        total = label_loss(own, targets, self.loss_config)
        if self.teacher is None:
            # Without a teacher both heads of a distilled model learn the labels.
            return Loss(total if own is taught else (total + label_loss(taught, targets, self.loss_config)) / 2, {})
        lesson = distillation_loss(taught, self.teacher(images).float(), config)
        report = {"label_loss": total.detach(), "teacher_loss": lesson.detach()}
        return Loss((1 - config.weight) * total + config.weight * lesson, report)

    def predict(self, split: Split, model: nn.Module, batch: Batch) -> list[tuple[int, Prediction]]:
        """Return the probability of each class."""
        logits = model(normalize(batch.images, self.transform.mean, self.transform.std))
        probabilities = logits.float().softmax(1).cpu().numpy()
        return [
            (row, Prediction(each.copy(), label))
            for row, each, label in zip(batch.rows, probabilities, batch.labels.tolist(), strict=True)
        ]

    def measure(self, split: Split, outputs: Sequence[Prediction]) -> dict[str, float]:
        """Return loss, accuracy and calibration."""
        return measure(outputs, self.images.classes)


def label_loss(logits: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
    """Sum the loss of (batch, classes) logits over the images; `targets` are shares of the classes."""
    if config.kind == "cross_entropy":
        return F.cross_entropy(logits, targets, label_smoothing=config.smoothing, reduction="sum")
    smooth = targets * (1 - config.smoothing) + config.smoothing / targets.size(1)
    return F.binary_cross_entropy_with_logits(logits, smooth, reduction="sum")
