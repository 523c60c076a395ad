"""Cross-entropy of a large output layer without its logits."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
"""Logits that exist at one time on a device, in whole rows; fewer leave a GPU idle."""


class FactoredLogits(NamedTuple):
    """Logits as `hidden @ weight.T`, not multiplied out."""

    hidden: Float[Tensor, "rows dim"]
    weight: Float[Tensor, "vocabulary dim"]


class CrossEntropy(NamedTuple):
    """Sums over the rows; divide by their number for a mean."""

    smoothed: Float[Tensor, ""]
    """What is trained on: label-smoothed, plus the consistency term where asked for."""
    plain: Float[Tensor, ""]
    """Negative log-likelihood in nats, without smoothing, detached: what perplexity is made of."""


def linear_cross_entropy(
    logits: FactoredLogits, target: Int[Tensor, "rows"], *, smoothing: float = 0.0, consistency: float = 0.0
) -> CrossEntropy:
    """Sum the label-smoothed cross-entropy over rows, in chunks, with gradients made in the forward pass.

    The target class gets 1 - smoothing + smoothing / vocabulary, every other one smoothing / vocabulary (Szegedy et al.
    2016, section 7), as in `torch.nn.functional.cross_entropy`. With `consistency` above 0 the rows are two passes of
    the same targets, the second half after the first, and the loss adds consistency / 2 times the sum of both
    Kullback-Leibler divergences between the passes (R-Drop, Liang et al. 2021, equations 3 and 4).
    Logits and their gradients are of the autocast type where autocast is on; sums are in float32 or wider.
    Rows that are to be ignored, padding above all, are left out before: `hidden[positions]`, `target[positions]`.

    Raises:
        ValueError: there is not one target per row, or `consistency` is asked of an odd number of rows.
    """
    hidden, weight = logits
    if hidden.dim() != 2 or target.dim() != 1:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)} and target {tuple(target.shape)}: pass (rows, dim) and (rows,), "
            "flattened and without padding."
        )
    if len(target) != len(hidden):
        raise ValueError(f"{len(target)} targets for {len(hidden)} rows of logits: pass one target a row.")
    if consistency and len(hidden) % 2:
        raise ValueError(f"consistency compares two passes, but {len(hidden)} rows are not two equal halves.")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return CrossEntropy(*_LinearCrossEntropy.apply(hidden, weight, target, smoothing, consistency, dtype))


def chunk_rows(weight: Float[Tensor, "vocabulary dim"]) -> int:
    """Return how many rows of logits exist at one time."""
    return max(1, CHUNK_ELEMENTS.get(weight.device.type, 2**24) // len(weight))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        smoothing: float,
        consistency: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        factor = weight.to(dtype)
        hidden_grad, weight_grad = torch.empty_like(hidden), torch.zeros_like(weight)
        wide = torch.promote_types(dtype, torch.float32)
        plain, normalisers, divergence = hidden.new_zeros(3, dtype=torch.float64).unbind()
        passes = 2 if consistency else 1
        pairs = torch.arange(len(hidden), device=hidden.device).view(passes, -1)
        for columns in pairs.split(max(1, chunk_rows(weight) // passes), 1):
            rows = columns.flatten()
            inputs, labels = hidden[rows].to(dtype), target[rows, None]
            chunk = inputs @ factor.T
            gradient = chunk.softmax(1)
            # The largest probability is 1 / sum(exp(logit - largest logit)), so its logarithm gives the normaliser.
            normaliser = chunk.amax(1, keepdim=True).to(wide) - gradient.amax(1, keepdim=True).to(wide).log()
            plain += (normaliser - chunk.gather(1, labels)).sum()
            normalisers += normaliser.sum()
            if consistency:
                between, slope = _divergence(chunk - normaliser, gradient.to(wide))
                divergence += between
                gradient.add_(slope, alpha=consistency)
            gradient.sub_(smoothing / len(weight))
            # Indexed, because scatter_add_ copies the whole chunk twice on a CPU.
            gradient[torch.arange(len(rows), device=rows.device), labels[:, 0]] -= 1 - smoothing
            hidden_grad[rows] = (gradient @ factor).to(hidden.dtype)
            weight_grad += gradient.T @ inputs
        mean_logits = hidden.sum(0, dtype=wide).double() @ weight.mean(0).double()
        uniform = normalisers - mean_logits
        ctx.save_for_backward(hidden_grad, weight_grad)
        smoothed = (1 - smoothing) * plain + smoothing * uniform + consistency * divergence
        result = torch.promote_types(hidden.dtype, torch.float32)
        plain = plain.to(result)
        ctx.mark_non_differentiable(plain)
        return smoothed.to(result), plain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, smoothed_grad: Tensor, plain_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = smoothed_grad.to(hidden_grad.dtype)
        return hidden_grad * scale, weight_grad * scale, None, None, None, None


def _divergence(log_probability: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of both Kullback-Leibler divergences between the halves of the rows, and its gradient to the logits."""
    swapped = log_probability.roll(len(log_probability) // 2, 0)
    ratio = log_probability - swapped
    kl = (probability * ratio).sum(1, keepdim=True)
    gradient = 0.5 * (probability * (ratio - kl) + probability - swapped.exp())
    return 0.5 * kl.sum(), gradient


def log_likelihood(logits: FactoredLogits, target: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    """Return the log-probability of each row's target, in float32 or wider; for evaluation, without gradients."""
    parts = []
    rows = chunk_rows(logits.weight)
    for hidden, labels in zip(logits.hidden.split(rows), target.split(rows), strict=True):
        chunk = hidden @ logits.weight.T
        chunk = chunk.to(torch.promote_types(chunk.dtype, torch.float32))
        parts.append(chunk.gather(1, labels[:, None])[:, 0] - chunk.logsumexp(1))
    return torch.cat(parts)
