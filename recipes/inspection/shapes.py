"""Tensors with a shape and no numbers.

They call themselves tensors of a CPU, and what is done to them is done to tensors of the meta device: autograd and
autocast act, and attention chooses its kernel, as on a CPU. PyTorch's fake tensors do this too, and much that a dry run
does not need, for which they take several times as long. What goes around the operators (`.data`, `module.to`, `out=`
of another shape) is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class ShapeTensor(Tensor):
    """A tensor of a CPU without numbers."""

    inner: Tensor
    """The same on the meta device. Tensors that share memory have inner ones that share a storage."""

    @staticmethod
    def __new__(cls: "type[ShapeTensor]", inner: Tensor) -> Tensor:
        """Wrap a tensor of the meta device."""
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=torch.device("cpu")
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:
        return f"ShapeTensor({list(self.shape)}, {self.dtype})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportPrivateUsage, reportAssignmentType]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class ShapeMode(TorchDispatchMode):
    """Makes every new tensor one without numbers; where a number is asked for it is no, or 0, or a half."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return {torch.bool: False}.get(args[0].dtype, 0.5 if args[0].is_floating_point() else 0)
        return _compute(func, args, kwargs or {})


class Layout(NamedTuple):
    """All that there is to know of a tensor that shares memory with no other."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """Return what stands for the memory of a tensor."""
    return (tensor.inner if isinstance(tensor, ShapeTensor) else tensor).untyped_storage()


def storage_id(tensor: Tensor) -> int:
    """Return a number that tensors share if they share memory."""
    return storage_of(tensor)._cdata  # pyright: ignore[reportPrivateUsage]


KNOWN: dict[tuple[Any, ...], Any] = {}
"""What operations return, by name, default type and what they are given: many kernels of the meta device are slow."""
ALIASING: set[Any] = set()
"""Operations seen to return a view, or what they changed in place: not all of them say so in their schema."""


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    inner = [_inner(each) for each in args]
    named = {name: _inner(each) for name, each in kwargs.items()}
    if func in ALIASING:
        return _related(func, func(*inner, **named), args, kwargs)
    key = (func, torch.get_default_dtype(), _key(inner), _key(list(named.items())))
    if key not in KNOWN:
        out = func(*inner, **named)
        if not _storages(out).isdisjoint(_storages((inner, named))):
            ALIASING.add(func)
            return _related(func, out, args, kwargs)
        KNOWN[key] = _layout(out)
    return _made(KNOWN[key])


def _related(func: Any, out: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Wrap what shares memory with what was given, or is it."""
    if torch.Tag.inplace_view in func.tags:
        with torch._C._DisableTorchDispatch():  # pyright: ignore[reportPrivateUsage]
            func(*args, **kwargs)  # turns the outer tensor as the inner one was turned
    given = {id(each.inner): each for each in (*args, *kwargs.values()) if isinstance(each, ShapeTensor)}
    return _outer(out, given)


def _storages(x: Any) -> set[int]:
    return {storage_id(each) for each in tree_leaves(x) if isinstance(each, Tensor)}


def _inner(x: Any) -> Any:
    if isinstance(x, ShapeTensor):
        if x.dtype != x.inner.dtype or x.shape != x.inner.shape:
            raise RuntimeError(f"{x} was changed without an operator, by .data, .to of its module or out=.")
        return x.inner
    if isinstance(x, Tensor):
        return x.to(META)
    if isinstance(x, list | tuple):
        return [_inner(each) for each in x]
    return META if isinstance(x, torch.device) else x


def _outer(x: Any, given: Mapping[int, ShapeTensor]) -> Any:
    """Wrap what an operation returns, unless it is what it was given."""
    if isinstance(x, Tensor):
        return given[id(x)] if id(x) in given else ShapeTensor(x)
    return [_outer(each, given) for each in x] if isinstance(x, list | tuple) else x


def _key(x: Any) -> Any:
    """Return what can be looked up: 1, 1.0 and True are equal, and do not give the same."""
    if isinstance(x, Tensor):
        return _layout(x)
    return tuple([_key(each) for each in x]) if isinstance(x, list | tuple) else (type(x), x)


def _layout(x: Any) -> Any:
    if isinstance(x, Tensor):
        return Layout(x.shape, x.stride(), x.dtype)
    return [_layout(each) for each in x] if isinstance(x, list | tuple) else x


def _made(x: Any) -> Any:
    if isinstance(x, Layout):
        return ShapeTensor(torch.empty_strided(x.shape, x.stride, dtype=x.dtype, device=META))
    return tuple([_made(each) for each in x]) if isinstance(x, list) else x
