"""Weights laid out once for the matrix kernels of a CPU: the same model, faster to use, no longer to be trained."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from transformer_core.linear import Linear, taken

Precision = Literal["fp32", "bf16", "int8"]
Model = TypeVar("Model", bound=nn.Module)

TYPICAL_ROWS = 256
"""Rows of input for which oneDNN chooses the layout; any number can be multiplied."""
MANY_OUTPUTS = 4096
"""Outputs from which on oneDNN is quicker than MKL without AVX-512: 1.5 times for 100 rows of 256 (EPYC, Zen 3)."""


def pack(model: Model, precision: Precision) -> Model:
    """Return a model that computes what `model` does, its linear layers packed for inference on a CPU.

    fp32 rounds as before, or in another order; it is packed for oneDNN where that library has been asked for
    (`torch.backends.mkldnn.matmul.fp32_precision` is "bf16"). bf16 multiplies in bfloat16 and adds up in float32,
    where the CPU has instructions for it. int8 rounds each row of a weight to 255 steps and the inputs of each call
    together, to half as many on a CPU without VNNI (Dettmers et al. 2022, absmax of section 2.1, for weights row by row
    as in section 3.1), for products of whole numbers; an output then depends a little on what else is in the batch.
    Weights are shared with `model`, and linear layers laid out at their first use: where training goes on, pack again.

    Raises:
        ValueError: the model is not on a CPU in float32, this build of PyTorch has no oneDNN, or the CPU no bfloat16.
    """
    if not torch.backends.mkldnn.is_available():
        raise ValueError("this build of PyTorch has no oneDNN: use the model as it is.")
    if precision == "bf16" and not has_bfloat16():
        raise ValueError("this CPU has no instructions that oneDNN needs for bfloat16: choose precision fp32 or int8.")
    if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in model.parameters()):
        raise ValueError("packing needs a model in float32 on a CPU: move it there first.")
    held = nn.ModuleDict({"model": copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})})
    for parent in list(held.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Linear):
                setattr(parent, name, PackedLinear(child, precision))
    return cast(Model, held["model"].eval())


def has_bfloat16() -> bool:
    """Say whether weights can be packed in bfloat16 on this CPU: it needs AVX-512 or AVX-NE-CONVERT."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_vnni() -> bool:
    """Say whether this CPU adds up products of 8 and 8 bits in 32; others take 16, which full steps overflow."""
    return torch.cpu._is_vnni_supported()  # pyright: ignore[reportPrivateUsage]


class PackedLinear(nn.Module):
    """A linear layer for inference on a CPU; the parts of it that are asked for are packed at their first use."""

    def __init__(self, linear: Linear, precision: Precision) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.precision: Precision = precision
        self.kernels: dict[tuple[int | None, int | None], Callable[[Tensor], Tensor]] = {}

    def forward(self, x: Float[Tensor, "*shape dim"], rows: slice | None = None) -> Float[Tensor, "*shape features"]:
        """Return what `Linear` returns, without gradients."""
        part = (None, None) if rows is None else (rows.start, rows.stop)
        if part not in self.kernels:
            bias = None if self.bias is None else self.bias.detach()[slice(*part)].contiguous()
            self.kernels[part] = KERNELS[self.precision](self.weight.detach()[slice(*part)].contiguous(), bias)
        return self.kernels[part](x)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is packed: a copy, or another process, packs for itself."""
        return self.__dict__ | {"kernels": {}}

    def take(self, features: Int[Tensor, "taken"]) -> "PackedLinear":
        """Return a layer of its own that computes these output features."""
        return PackedLinear(taken(self.weight, self.bias, features), self.precision)


def _pack_or_turn(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Pack float32 where this process has been told to multiply it by oneDNN; MKL reads it best input by input.

    Without AVX-512 only weights of many outputs are packed: for others MKL is as quick, and needs no kernel of its own
    for each number of rows.
    """
    asked = torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # pyright: ignore[reportAttributeAccessIssue]
    if asked and (has_bfloat16() or len(weight) >= MANY_OUTPUTS):
        return _pack_float(weight, bias)
    turned = weight.mT.contiguous().mT
    return lambda x: F.linear(x, turned, bias)


def _pack_float(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _pack_bfloat16(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    narrow = _pack_float(weight.bfloat16(), None if bias is None else bias.bfloat16())
    return lambda x: narrow(x.bfloat16()).to(x.dtype)


def _pack_int8(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Pack for the kernels of oneDNN, which want VNNI, or for those of FBGEMM, which are quicker without."""
    return _pack_for_vnni(weight, bias) if has_vnni() else _pack_for_fbgemm(weight, bias)


def _pack_for_fbgemm(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    scales, zeros = weight.abs().amax(1).double().clamp(min=1e-12) / 127, torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        # PyTorch means to drop tensors of this type some day, and has no other way to these kernels yet.
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
        steps = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(steps, bias)
    seven_bits = True
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, seven_bits)


def _pack_for_vnni(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    scales = weight.abs().amax(1).clamp(min=1e-12) / 127
    rounded = (weight / scales[:, None]).round().to(torch.int8)
    packed, zeros = torch.ops.onednn.qlinear_prepack(rounded, None), torch.zeros(len(weight), dtype=torch.int64)

    def multiply(x: Tensor) -> Tensor:
        if not x.numel():
            return x.new_empty(*x.shape[:-1], len(scales))
        scale = max(float(x.abs().amax()), 1e-12) / 127
        steps = (x * (1 / scale)).round_().to(torch.int8)
        return torch.ops.onednn.qlinear_pointwise(
            steps, scale, 0, packed, scales, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
        )

    return multiply


KERNELS: dict[Precision, Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]]] = {
    "fp32": _pack_or_turn,
    "bf16": _pack_bfloat16,
    "int8": _pack_int8,
}
