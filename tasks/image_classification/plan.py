"""Which images come in which batch of an epoch, and the seed of each: the same in any number of processes."""

import hashlib

import numpy as np


def planned_rows(count: int, batch: int, repeats: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the micro-batches of one epoch as rows of the data set, a pure function of the arguments.

    With `repeats` of 1 each of `count` images comes once. With more (Hoffer et al. 2020; Touvron et al. 2021), each
    image that comes is `repeats` times in one micro-batch, so that an epoch has as many samples as there are images, to
    within `repeats`: of `repeats` epochs in a row, from a multiple on, each shows another share of the images, and
    every image comes in one of them. The copies lie as far apart as they can, so that `mix_batch` mixes different
    images. `batch` counts samples; the last micro-batch of an epoch may be smaller, and nothing is dropped.

    Raises ValueError as `check_plan` does.
    """
    check_plan(count, batch, repeats)
    cycle, part = divmod(epoch, repeats)
    order = np.random.default_rng([seed, cycle]).permutation(count)
    shown: list[int] = order[part * count // repeats : (part + 1) * count // repeats].tolist()
    different = batch // repeats
    return [shown[begin : begin + different] * repeats for begin in range(0, len(shown), different)]


def check_plan(count: int, batch: int, repeats: int) -> None:
    """Raise ValueError if `batch` does not hold all repeats of an image, or there are fewer images than repeats."""
    if batch < 1 or batch % repeats:
        raise ValueError(f"batch={batch} cannot be used: choose a multiple of the repeats, {repeats}.")
    if repeats > max(count, 1):
        raise ValueError(f"repeats={repeats} cannot be used: choose at most the number of images, {count}.")


def augmentation_seed(seed: int, epoch: int, row: int, occurrence: int) -> int:
    """Return the 64 bits for `apply`: a hash, the same everywhere, of the data's seed and which image it is and when.

    `occurrence` counts the earlier places of the row in its micro-batch.
    """
    digest = hashlib.blake2b(f"{seed} {epoch} {row} {occurrence}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
