import hashlib
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import v2
from torchvision.transforms.v2 import AutoAugmentPolicy, InterpolationMode

from tasks.image_classification.augment import (
    AugmentConfig,
    TransformConfig,
    apply,
    evaluation_transform,
    mix_batch,
    normalize,
    training_transform,
)
from tasks.image_classification.plan import augmentation_seed, planned_rows

POLICIES = ("rand", "trivial", "auto_cifar10", "auto_imagenet", "three")
PLAIN = {"crop": "none", "flip": False}
CHANGES = [
    {"crop": "random_resized", "flip": False},
    {"crop": "pad", "flip": False},
    {"crop": "none", "flip": True},
    {**PLAIN, "color_jitter": 0.4},
    {**PLAIN, "erasing": 1.0},
    *[{**PLAIN, "policy": policy} for policy in POLICIES],
]


def photo(channels=3, height=31, width=45):
    """Smooth gradients with a bright spot, so that every change of geometry and of colour shows."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    image = torch.stack([rows, columns, 1 - rows * columns])[:channels] * 200 + 20
    image[:, 5:9, 7:13] = 250
    return image.to(torch.uint8)


def augmented(config, seed, image=None, size=(24, 40), **transform):
    step = training_transform(AugmentConfig(**config), TransformConfig(**transform), size)
    return apply(step, photo() if image is None else image, seed)


def digest(config):
    return hashlib.sha256(torch.stack([augmented(config, seed) for seed in range(4)]).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", CHANGES)
def test_every_augmentation_changes_pixels_and_keeps_type_and_channels(config, channels):
    image = photo(channels)
    before = image.clone()
    plain = augmented(PLAIN, 0, image)
    results = [augmented(config, seed, image) for seed in range(12)]
    assert {(result.dtype, tuple(result.shape)) for result in results} == {(torch.uint8, (channels, 24, 40))}
    assert sum(not torch.equal(result, plain) for result in results) >= 3
    assert len({result.numpy().tobytes() for result in results}) >= 2
    assert torch.equal(image, before)


@pytest.mark.parametrize("config", CHANGES)
def test_the_seed_alone_decides_the_pixels(config):
    first = digest(config)
    torch.manual_seed(5)
    random.seed(6)
    np.random.seed(7)
    assert digest(config) == first


@pytest.mark.slow
def test_a_fresh_process_makes_the_same_pixels():
    program = "from tests.tasks.test_image_augment import *; print(*map(digest, CHANGES))"
    command = [sys.executable, "-c", f"import torch; torch.set_num_threads(1); {program}"]
    shown = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    assert shown.split() == [digest(config) for config in CHANGES]


def test_the_generators_of_the_caller_are_left_as_they_were():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for config in CHANGES:
        augmented(config, 3)
    mix_batch(torch.ones(4, 3, 5, 7), torch.eye(4), AugmentConfig(mixup=0.2, cutmix=1.0), 3)
    planned_rows(11, 4, 2, 3, 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_the_generator_is_put_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        apply(lambda image: torch.rand(()) + 1 // 0, photo(), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (
            {"crop": "random_resized", "min_scale": 0.3, "flip": False},
            v2.RandomResizedCrop((24, 40), (0.3, 1.0), interpolation=InterpolationMode.BICUBIC),
        ),
        ({"crop": "pad", "padding": 5, "flip": False}, v2.RandomCrop((24, 40), padding=5, fill=[51, 102, 153])),
        (
            {"crop": "pad", "flip": True},
            v2.Compose([v2.RandomCrop((24, 40), padding=4, fill=[51, 102, 153]), v2.RandomHorizontalFlip()]),
        ),
        (
            {**PLAIN, "policy": "rand", "rand_layers": 3, "rand_magnitude": 17},
            v2.RandAugment(3, 17, fill=[51, 102, 153]),
        ),
        ({**PLAIN, "policy": "trivial"}, v2.TrivialAugmentWide(fill=[51, 102, 153])),
        ({**PLAIN, "policy": "auto_cifar10"}, v2.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=[51, 102, 153])),
        ({**PLAIN, "policy": "auto_imagenet"}, v2.AutoAugment(AutoAugmentPolicy.IMAGENET, fill=[51, 102, 153])),
        ({**PLAIN, "color_jitter": 0.4}, v2.ColorJitter(0.4, 0.4, 0.4)),
        ({**PLAIN, "erasing": 0.5}, v2.RandomErasing(0.5, value=(51, 102, 153))),
    ],
)
def test_augmentations_are_those_of_torchvision_with_the_mean_colour_where_nothing_is(config, theirs):
    image = photo(3, 24, 40)
    for seed in range(12):
        torch.manual_seed(seed)
        expected = theirs(image)
        assert torch.equal(augmented(config, seed, image, mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3)), expected)


def test_three_augment_takes_one_of_grey_solarized_and_blurred_evenly():
    image = photo(3, 24, 40)
    results = [augmented({**PLAIN, "policy": "three"}, seed, image) for seed in range(150)]
    grey = [bool((result == result[:1]).all()) for result in results]
    solarized = [torch.equal(result, torch.where(image >= 128, 255 - image, image)) for result in results]
    blurred = [result for result, *others in zip(results, grey, solarized, strict=True) if not any(others)]
    assert all(30 < count < 70 for count in (sum(grey), sum(solarized), len(blurred)))
    kernel = v2.GaussianBlur(13, sigma=(2.0, 2.0))(image)
    strongest = min((result.int() - kernel.int()).abs().max() for result in blurred)
    weakest = min((result.int() - image.int()).abs().max() for result in blurred)
    assert strongest <= 4 and weakest <= 4


@pytest.mark.parametrize("size", [(2, 9), (5, 3)])
def test_three_augment_blurs_images_smaller_than_its_reach(size):
    for seed in range(9):
        assert augmented({**PLAIN, "policy": "three"}, seed, size=size).shape == (3, *size)


@pytest.mark.parametrize(("height", "width"), [(31, 45), (45, 31), (61, 97), (20, 97), (24, 24)])
@pytest.mark.parametrize("share", [1.0, 0.875])
def test_a_square_view_is_torchvisions_resize_of_the_short_side_and_centre_crop(height, width, share):
    image = photo(3, height, width)
    side = round(24 / share)
    expected = v2.CenterCrop(24)(v2.Resize(side, InterpolationMode.BICUBIC, antialias=True)(image))
    assert torch.equal(evaluation_transform(TransformConfig(crop_share=share), (24, 24))(image), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("interpolation", "theirs"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize(
    ("image_size", "scaled", "box"),
    [
        ((62, 90), (40, 27), (0, 2, 40, 26)),  # the width just covers, the height is cut
        ((62, 120), (46, 24), (3, 0, 43, 24)),  # the height just covers, the width is cut
        ((48, 80), (40, 24), (0, 0, 40, 24)),
    ],
)
def test_a_rectangular_view_is_pillows_resize_and_crop(channels, interpolation, theirs, image_size, scaled, box):
    image = photo(channels, *image_size)
    picture = Image.fromarray(image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy())
    expected = np.asarray(picture.resize(scaled, theirs).crop(box)).reshape(24, 40, channels)
    view = evaluation_transform(TransformConfig(interpolation=interpolation), (24, 40))(image)
    assert view.dtype == torch.uint8 and view.shape == (channels, 24, 40)
    assert (view.permute(1, 2, 0).int() - torch.tensor(expected).int()).abs().max() <= 1


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_ribbon_only_the_middle_is_scaled(monkeypatch, turned):
    sizes, resize = [], v2.functional.resize

    def recorded(image, size, *rest, **more):
        sizes.append(size)
        return resize(image, size, *rest, **more)

    monkeypatch.setattr(v2.functional, "resize", recorded)
    ribbon = torch.zeros(3, 2, 100_000, dtype=torch.uint8)
    ribbon[:, :, 49_999:50_001] = 200
    view = evaluation_transform(TransformConfig(), (24, 24))(ribbon.mT if turned else ribbon)
    assert view.shape == (3, 24, 24) and view[:, 6:18, 6:18].min() > 180
    assert max(sizes[0]) == 16 * 24


def test_a_view_of_its_own_size_changes_nothing():
    assert torch.equal(evaluation_transform(TransformConfig(), (31, 45))(photo()), photo())
    assert torch.equal(augmented(PLAIN, 1, size=(31, 45)), photo())


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [(3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (3, (0.5,), (0.3,)), (1, (0.13,), (0.31,))],
)
def test_normalisation_is_torchvisions(channels, mean, std):
    images = torch.randint(0, 256, (5, channels, 7, 11), dtype=torch.uint8)
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    normal = normalize(images, mean, std)
    assert normal.dtype == torch.float32
    assert_close(normal, theirs(images), rtol=0, atol=2e-6)


def test_normalisation_and_augmentation_name_the_channels_they_miss():
    three = {"mean": (0.5, 0.5, 0.4), "std": (0.5, 0.5, 0.5)}
    with pytest.raises(ValueError, match=r"mean=\(0.5, 0.5, 0.4\).* one number .* have channels, 1"):
        normalize(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), **three)
    with pytest.raises(ValueError, match=r"std=\(0.5, 0.5, 0.5\).* channels, 1"):
        normalize(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), (0.5,), three["std"])
    with pytest.raises(ValueError, match=r"mean=\(0.5, 0.5, 0.4\).* channels, 1"):
        augmented({"crop": "pad"}, 1, photo(1), **three)


def batch(count=5, channels=3, height=24, width=40):
    """Image number n is n everywhere, and of class n."""
    return torch.arange(count).float()[:, None, None, None].expand(count, channels, height, width), torch.eye(count)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_the_hand_mixed_batch(seed):
    images, targets = torch.randn(5, 3, 7, 11), torch.eye(5)
    mixed, shares = mix_batch(images, targets, AugmentConfig(mixup=0.8), seed)
    ratio = shares[0, 0]
    assert 0 < ratio < 1
    for row in range(5):
        before = (row - 1) % 5
        assert_close(mixed[row], ratio * images[row] + (1 - ratio) * images[before])
        assert_close(shares[row], ratio * torch.eye(5)[row] + (1 - ratio) * torch.eye(5)[before])
    assert_close(shares.sum(1), torch.ones(5))
    assert torch.equal(targets, torch.eye(5))


@pytest.mark.parametrize("alpha", [0.2, 2.0])
def test_the_ratios_of_mixup_are_of_the_beta_distribution(alpha):
    images, targets = batch(2, 1, 1, 1)
    drawn = [mix_batch(images, targets, AugmentConfig(mixup=alpha), seed)[1][0, 0] for seed in range(400)]
    ratios = torch.stack(drawn)
    assert abs(float(ratios.mean()) - 1 / 2) < 0.08
    assert float(ratios.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_the_area_of_cutmix_is_the_share_of_the_target(seed):
    images, targets = batch()
    mixed, shares = mix_batch(images, targets, AugmentConfig(cutmix=1.0), seed)
    for row in range(5):
        before = (row - 1) % 5
        assert_close((mixed[row] == row).float().mean(), shares[row, row])
        assert_close((mixed[row] == before).float().mean(), shares[row, before])
        foreign = (mixed[row, 0] != row).nonzero()
        if len(foreign):
            height, width = (foreign.amax(0) - foreign.amin(0) + 1).tolist()
            assert height * width == len(foreign)
    assert_close(shares.sum(1), torch.ones(5))
    assert torch.equal(images, batch()[0])


def test_batches_take_mixup_or_cutmix_evenly_and_the_share_of_mix():
    images, targets = batch(3, 1, 24, 40)
    config = AugmentConfig(mixup=1.0, cutmix=1.0, mix=0.6)
    kinds: Counter[str] = Counter()
    for seed in range(300):
        mixed, shares = mix_batch(images, targets, config, seed)
        assert_close(shares.sum(1), torch.ones(3))
        whole = bool((mixed == mixed.round()).all())
        kinds["none" if torch.equal(shares, targets) else "cut" if whole else "up"] += 1
    # A CutMix whose rectangle has no area changes nothing either.
    assert 100 < kinds["none"] < 150 and 65 < kinds["up"] < 115 and 65 < kinds["cut"] < 115


def test_mixing_depends_on_the_seed_alone():
    images, targets = batch()
    config = AugmentConfig(mixup=0.8, cutmix=1.0)
    first = mix_batch(images, targets, config, 3)
    torch.manual_seed(99)
    assert all(map(torch.equal, mix_batch(images, targets, config, 3), first))
    assert not torch.equal(mix_batch(images, targets, config, 4)[0], first[0])


def test_nothing_is_mixed_unless_asked_for_and_whole_numbers_are_refused():
    images, targets = batch()
    for config in (AugmentConfig(), AugmentConfig(mixup=0.8, mix=0.0)):
        assert all(map(torch.equal, mix_batch(images, targets, config, 3), (images, targets)))
    with pytest.raises(ValueError, match=r"dtype=torch.uint8 cannot be mixed: give what `normalize` returns"):
        mix_batch(images.to(torch.uint8), targets, AugmentConfig(mixup=0.8), 3)


@pytest.mark.parametrize(("count", "size"), [(23, 5), (20, 5), (3, 5), (0, 5)])
def test_an_epoch_shows_every_image_once_and_cuts_the_last_batch(count, size):
    plan = planned_rows(count, size, 1, 7, 2)
    assert sorted(row for rows in plan for row in rows) == list(range(count))
    assert [len(rows) for rows in plan] == [size] * (count // size) + [count % size] * (count % size > 0)


def test_plans_are_shuffled_and_differ_by_epoch_and_seed():
    plan = planned_rows(101, 10, 1, 7, 0)
    assert plan == planned_rows(101, 10, 1, 7, 0)
    others = [list(range(101)), *(sum(planned_rows(101, 10, 1, *key), []) for key in ((7, 1), (8, 0), (0, 7)))]
    assert all(sum(plan, []) != other for other in others)


@pytest.mark.parametrize("count", [60, 61, 62])
def test_repeated_images_share_a_batch_and_every_image_has_its_turn(count):
    shown: Counter[int] = Counter()
    for epoch in range(6, 9):
        plan = planned_rows(count, 12, 3, 7, epoch)
        assert abs(sum(map(len, plan)) - count) < 3
        for rows in plan:
            assert set(Counter(rows).values()) == {3}
            assert len(rows) == 12 or rows is plan[-1]
            assert all(row != rows[place - 1] for place, row in enumerate(rows)) or len(rows) == 3
        shown.update(row for rows in plan for row in rows)
    assert shown == Counter({row: 3 for row in range(count)})
    assert planned_rows(count, 12, 3, 7, 6) != planned_rows(count, 12, 3, 7, 9)


def test_plans_name_what_does_not_fit():
    with pytest.raises(ValueError, match="batch=128 cannot be used: choose a multiple of the repeats, 3"):
        planned_rows(1000, 128, 3, 1, 0)
    with pytest.raises(ValueError, match="repeats=3 cannot be used: choose at most the number of images, 2"):
        planned_rows(2, 6, 3, 1, 0)


def test_augmentation_seeds_are_blake2b_of_the_four_numbers():
    # printf '1 2 3 4' | b2sum -l 64
    assert augmentation_seed(1, 2, 3, 4).to_bytes(8, "little").hex() == "ab27e7b77ed3499d"
    assert augmentation_seed(12345, 0, 7, -1).to_bytes(8, "little").hex() == "8296873a4a435442"
    seeds = [augmentation_seed(*key) for key in ((1, 1, 12, 1), (1, 11, 2, 1), (11, 1, 2, 1), (1, 1, 1, 21))]
    assert len(set(seeds)) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_scale": 0.0}, "min_scale=0.0 .* choose more than 0 and at most 1"),
        ({"padding": -1}, "padding=-1 .* choose 0 or more"),
        ({"rand_layers": 0}, "rand_layers=0 .* choose 1 or more"),
        ({"rand_magnitude": 31}, "rand_magnitude=31 .* choose 0 to 30"),
        ({"color_jitter": 1.5}, "color_jitter=1.5 .* choose 0 for none"),
        ({"erasing": -0.1}, "erasing=-0.1 .* choose a probability"),
        ({"mixup": -1.0}, "mixup=-1.0 .* choose 0 for none"),
        ({"cutmix": -1.0}, "cutmix=-1.0 .* choose 0 for none"),
        ({"mix": 1.1}, "mix=1.1 .* choose a share"),
        ({"repeats": 0}, "repeats=0 .* choose 1 for none"),
    ],
)
def test_augmentations_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_share": 0.0}, "crop_share=0.0 .* choose more than 0"),
        ({"mean": (0.5, 0.5)}, "mean=.* choose one number for all channels, or three"),
        ({"mean": (124.0,)}, "mean=.* choose numbers from 0"),
        ({"std": (0.5, 0.5, 0.5)}, "std=.* choose as many numbers as mean has, 1"),
        ({"std": (0.0,)}, "std=.* choose numbers above 0"),
    ],
)
def test_transforms_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TransformConfig(**values)


def test_a_view_without_pixels_is_refused():
    with pytest.raises(ValueError, match=r"image_size=\(0, 5\) cannot be used: choose a height and a width"):
        evaluation_transform(TransformConfig(), (0, 5))
