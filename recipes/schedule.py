"""The learning rate as a pure function of the step, so that nothing has to be saved or restored."""

import math
from typing import Literal

Schedule = Literal["inverse_sqrt", "noam", "cosine", "linear", "constant"]


def learning_rate(step: int, *, schedule: Schedule, peak: float, warmup: int, steps: int) -> float:
    """Return the learning rate of update `step`, counted from 1.

    All rise linearly over `warmup` updates to `peak`. Then "inverse_sqrt" falls as 1 / sqrt(step), "cosine"
    (Loshchilov and Hutter 2017) and "linear" fall to 0 at the last of `steps`, "constant" stays. "noam" is
    `peak * min(step^-0.5, step * warmup^-1.5)`, which is equation 3 of Vaswani et al. (2017) with `peak` = dim^-0.5; it
    is "inverse_sqrt" under another meaning of `peak`.
    """
    if schedule == "noam":
        return peak * min(step**-0.5, step * max(warmup, 1) ** -1.5)
    if step < warmup:
        return peak * step / warmup
    left = (steps - step) / max(1, steps - warmup)
    match schedule:
        case "inverse_sqrt":
            return peak * math.sqrt(max(warmup, 1) / step)
        case "cosine":
            return peak * 0.5 * (1 - math.cos(math.pi * left))
        case "linear":
            return peak * left
        case "constant":
            return peak
