"""How images are cut, changed and mixed before a model sees them, on `torchvision.transforms.v2`.

One image is a uint8 tensor (channels, height, width) with 1 or 3 channels until it is on the device, where `normalize`
takes the whole batch; sizes are (height, width). Every random draw comes from a seed that is given, so an epoch is the
same in any process and on any number of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.v2 import functional as F

Transform = Callable[[Tensor], Tensor]

STRONGEST = 30
"""The last of the magnitudes of torchvision's RandAugment."""
SOLARIZE_FROM = 128
"""The darkest value that solarizing inverts in 3-Augment."""
RIBBON = 16
"""How many times longer than its view an image may be to be scaled as a whole."""
BLUR_SIGMA, BLUR_RADIUS = (0.1, 2.0), 6
"""Standard deviations of the blur in 3-Augment, and how far it looks, in pixels: 3 times the largest."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images differ from what is on disk.

    Pixels without content (padded, turned in from outside, erased) get the mean colour of `TransformConfig`, which
    normalisation turns into zero.
    """

    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    """A part of random area and shape (Szegedy et al. 2015); a window moved by up to `padding` (He et al. 2016); or the
    same view as in evaluation, from which `pad` starts too."""
    min_scale: float = 0.08
    """Smallest share of the area of an image that `crop: random_resized` takes; the largest is all of it."""
    padding: int = 4
    """Pixels on each side for `crop: pad`."""
    flip: bool = True
    """Mirror left and right in half of the images; turn it off where that changes the class, as with digits."""
    policy: Literal["none", "rand", "trivial", "auto_cifar10", "auto_imagenet", "three"] = "none"
    """RandAugment (Cubuk et al. 2020), TrivialAugment wide (Müller and Hutter 2021), AutoAugment (Cubuk et al. 2019) as
    found on CIFAR-10 or ImageNet, all with the operations of torchvision; or 3-Augment (Touvron et al. 2022): grey,
    solarized or blurred."""
    rand_layers: int = 2
    """Operations that RandAugment applies to an image, of 14."""
    rand_magnitude: int = 10
    """Strength of RandAugment out of 30; a magnitude of code that counts to 10 is three times as much here."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation are multiplied by up to 1 plus or minus this."""
    erasing: float = 0.0
    """Probability that a rectangle is erased (Zhong et al. 2020), to the mean colour: noise of the distribution after
    normalisation, as others draw it, does not fit into uint8."""
    mixup: float = 0.0
    """Both parameters of the Beta distribution of MixUp (Zhang et al. 2018), 0 for no MixUp; 0.2 and 0.8 are usual."""
    cutmix: float = 0.0
    """The same for CutMix (Yun et al. 2019); 1.0 is usual. With `mixup`, each batch takes one of both, evenly."""
    mix: float = 1.0
    """Share of the micro-batches that are mixed at all."""
    start_size: tuple[int, int] | None = None
    """Height and width of the training images at first; they grow to the model's over `grow_epochs`, so that the first
    epochs cost little (Tan and Le 2021, EfficientNetV2, section 4). A ViT needs positions that are learned or none."""
    grow_epochs: int = 0
    """Epochs after which training images have the size of the model."""
    repeats: int = 1
    """How often a drawn image is in a micro-batch (Hoffer et al. 2020), see `planned_rows`; 3 is usual."""

    def __post_init__(self) -> None:
        _check("min_scale", self.min_scale, 0 < self.min_scale <= 1, "more than 0 and at most 1; 0.08 is usual")
        _check("padding", self.padding, self.padding >= 0, "0 or more pixels; 4 is usual for images of 32")
        _check("rand_layers", self.rand_layers, self.rand_layers >= 1, "1 or more, or policy none; 2 is usual")
        _check("rand_magnitude", self.rand_magnitude, 0 <= self.rand_magnitude <= STRONGEST, f"0 to {STRONGEST}")
        _check("color_jitter", self.color_jitter, 0 <= self.color_jitter <= 1, "0 for none, to 1; 0.3 is usual")
        _check("erasing", self.erasing, 0 <= self.erasing <= 1, "a probability; 0.25 is usual")
        _check("mixup", self.mixup, self.mixup >= 0, "0 for none, or more; 0.2 and 0.8 are usual")
        _check("cutmix", self.cutmix, self.cutmix >= 0, "0 for none, or more; 1.0 is usual")
        _check("mix", self.mix, 0 <= self.mix <= 1, "a share, 0 to 1")
        _check("repeats", self.repeats, self.repeats >= 1, "1 for none, or more; 3 is usual")
        _check("grow_epochs", self.grow_epochs, self.grow_epochs >= 0, "0 for none, or more")
        _check("start_size", self.start_size, min(self.start_size or (1,)) >= 1, "1 or more pixels on each side")
        both = (self.start_size is None) == (self.grow_epochs == 0)
        _check("start_size", self.start_size, both, "it together with grow_epochs, or neither")


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """How an image becomes input of a model, in evaluation and in use; kept with the model, which names the size."""

    crop_share: float = 1.0
    """Share of each side that is kept: images are scaled to cover the size divided by this, then cut in the centre;
    0.875 and 0.9 are usual on ImageNet."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """How images are scaled, with antialiasing; `crop: random_resized` does it in the same way."""
    mean: tuple[float, ...] = (0.5,)
    """What is taken off each channel, of values from 0 to 1; one number holds for all channels."""
    std: tuple[float, ...] = (0.5,)
    """What each channel is divided by; as many numbers as `mean`."""

    def __post_init__(self) -> None:
        _check("crop_share", self.crop_share, 0 < self.crop_share <= 1, "more than 0 and at most 1")
        _check("mean", self.mean, len(self.mean) in (1, 3), "one number for all channels, or three")
        _check("mean", self.mean, all(0 <= value <= 1 for value in self.mean), "numbers from 0 (black) to 1")
        _check("std", self.std, len(self.std) == len(self.mean), f"as many numbers as mean has, {len(self.mean)}")
        _check("std", self.std, all(value > 0 for value in self.std), "numbers above 0")


@dataclass(frozen=True)
class CentreView:
    """Scale an image so that it covers `cover`, its shape kept, and cut `size` out of its centre."""

    size: tuple[int, int]
    cover: tuple[int, int]
    interpolation: InterpolationMode

    def __call__(self, image: Tensor) -> Tensor:
        """Return the (channels, *size) view of a (channels, height, width) image."""
        rows, columns = self.cover
        # Of a ribbon only the middle is seen, and scaled as a whole it may not fit into memory.
        longest = [RIBBON * -(-image.size(-1) * rows // columns), RIBBON * -(-image.size(-2) * columns // rows)]
        image = F.center_crop(image, [min(pair) for pair in zip(image.shape[-2:], longest, strict=True)])
        height, width = image.shape[-2:]
        # Whole numbers, so that the side that just covers does so exactly.
        wide = width * rows >= height * columns
        scaled = [rows, width * rows // height] if wide else [height * columns // width, columns]
        return F.center_crop(F.resize(image, scaled, self.interpolation, antialias=True), list(self.size))


@dataclass(frozen=True)
class Augmentation:
    """Steps that one image goes through; they take turns at torch's global generator for the CPU."""

    steps: tuple[Transform, ...]
    mean: tuple[float, ...]

    def __call__(self, image: Tensor) -> Tensor:
        """Return the augmented image; raises ValueError where `mean` fits other channels than its."""
        # torchvision notices only once a random step has something to fill, and names no setting.
        _check_channels("mean", self.mean, image.size(0))
        for step in self.steps:
            image = step(image)
        return image


def evaluation_transform(config: TransformConfig, image_size: tuple[int, int]) -> CentreView:
    """Return what cuts a model's view out of one image, uint8 in and out; on equal sizes it changes nothing.

    Raises ValueError if a side of `image_size` is below 1.
    """
    _check("image_size", image_size, min(image_size) >= 1, "a height and a width of 1 or more pixels")
    height, width = (math.floor(side / config.crop_share) for side in image_size)  # as timm does
    return CentreView(image_size, (height, width), InterpolationMode(config.interpolation))


def training_transform(augment: AugmentConfig, transform: TransformConfig, image_size: tuple[int, int]) -> Augmentation:
    """Return what augments one image, uint8 (channels, height, width) in and (channels, *image_size) out.

    It draws from torch's global generator for the CPU and from nothing else: call it through `apply`.
    Raises ValueError as `evaluation_transform` does.
    """
    view, fill = evaluation_transform(transform, image_size), mean_colour(transform)
    steps: list[Transform] = []
    if augment.crop == "random_resized":
        scale = (augment.min_scale, 1.0)
        steps.append(v2.RandomResizedCrop(image_size, scale, interpolation=view.interpolation, antialias=True))
    else:
        steps.append(view)
    if augment.crop == "pad":
        steps.append(v2.RandomCrop(image_size, padding=augment.padding, fill=fill))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += _policy(augment, fill, image_size)
    if augment.color_jitter:
        steps.append(v2.ColorJitter(*[augment.color_jitter] * 3))
    if augment.erasing:
        steps.append(v2.RandomErasing(augment.erasing, value=fill))  # pyright: ignore[reportArgumentType]
    return Augmentation(tuple(steps), transform.mean)


def training_size(
    augment: AugmentConfig, image_size: tuple[int, int], step: tuple[int, int], epoch: int
) -> tuple[int, int]:
    """Return height and width of the training images of an epoch, the model's or multiples of `step`."""
    if augment.start_size is None or epoch >= augment.grow_epochs:
        return image_size
    share = epoch / augment.grow_epochs
    rows, columns = (
        max(each, round((first + share * (last - first)) / each) * each)
        for first, last, each in zip(augment.start_size, image_size, step, strict=True)
    )
    return rows, columns


def apply(transform: Transform, image: Tensor, seed: int) -> Tensor:
    """Return `transform(image)` as `seed` decides it in any process; the caller's generators stay as they are."""
    with seeded(seed):
        return transform(image)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 (batch, channels, height, width) as float32 on the same device: scaled to 1, less mean, over std.

    Raises ValueError unless `mean` and `std` have one number each, or one for each channel.
    """
    _check_channels("mean", mean, images.size(1))
    _check_channels("std", std, images.size(1))
    return images.float().sub_(_channels(mean, images.device)).div_(_channels(std, images.device))


def mix_batch(images: Tensor, targets: Tensor, config: AugmentConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Mix each image and its label with the one before it in the batch, the first with the last, by MixUp or CutMix.

    `images` are floating (batch, channels, height, width), `targets` floating (batch, classes) shares that sum to 1;
    neither is changed in place. One ratio, and one rectangle, holds for the batch. Meant for the device, after
    `normalize`: mixed images are no uint8, and would cost the host time and four times the copying. The draws are made
    on the host from `seed` alone, so nothing waits for the device and every device mixes alike.
    Raises ValueError for images that are not floating.
    """
    kinds = [kind(alpha=alpha) for kind, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix)) if alpha]
    if not kinds:
        return images, targets
    if not images.is_floating_point():
        raise ValueError(f"images of dtype={images.dtype} cannot be mixed: give what `normalize` returns.")
    with seeded(seed):
        if float(torch.rand(())) >= config.mix:
            return images, targets
        return kinds[int(torch.randint(len(kinds), ()))](images, targets)


def _policy(augment: AugmentConfig, fill: list[float], image_size: tuple[int, int]) -> list[Transform]:
    match augment.policy:
        case "none":
            return []
        case "rand":
            return [v2.RandAugment(augment.rand_layers, augment.rand_magnitude, STRONGEST + 1, fill=fill)]
        case "trivial":
            return [v2.TrivialAugmentWide(fill=fill)]
        case "auto_cifar10":
            return [v2.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=fill)]
        case "auto_imagenet":
            return [v2.AutoAugment(AutoAugmentPolicy.IMAGENET, fill=fill)]
        case "three":
            # The border is mirrored, so the blur cannot look farther than the image reaches.
            radius = min(BLUR_RADIUS, min(image_size) - 1)
            solarize, blur = v2.RandomSolarize(SOLARIZE_FROM, p=1), v2.GaussianBlur(2 * radius + 1, BLUR_SIGMA)
            return [v2.RandomChoice([v2.RandomGrayscale(p=1), solarize, blur])]


def mean_colour(config: TransformConfig) -> list[float]:
    """Return the value of each channel, or of all, for pixels without content."""
    return [float(round(255 * value)) for value in config.mean]


def _channels(values: Sequence[float], device: torch.device) -> Tensor:
    """Return (channels, 1, 1) numbers for values of up to 255, filled on the device: a copy would wait for it."""
    return torch.stack([torch.full((1, 1), 255 * value, device=device) for value in values])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator for the CPU and put it back; `torch.manual_seed` would seed every device for good."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def _check_channels(name: str, values: Sequence[float], channels: int) -> None:
    wanted = f"one number for all channels, or as many as the images have channels, {channels}"
    _check(name, tuple(values), len(values) in (1, channels), wanted)


def _check(name: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(f"{name}={value} cannot be used: choose {wanted}.")
