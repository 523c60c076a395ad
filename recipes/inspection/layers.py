"""The layers of a model: what they return and how many parameters they have."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Self

from torch import Tensor, nn

from recipes.inspection.subject import Subject


class Layer(NamedTuple):
    """A row of the table."""

    name: str
    kind: str
    """Class of the module."""
    shape: tuple[int, ...]
    """Shape of its output."""
    parameters: int
    """Numbers that are learned, without those of a row above."""
    shared: bool
    """Whether it has a weight that a row above has."""
    part: str
    """Part of the model that it belongs to."""


class OutputShapes:
    """Notes the shape of what each module of a model returns, inside a `with`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> Self:
        self._hooks = [module.register_forward_hook(self._note(name)) for name, module in self.model.named_modules()]
        return self

    def __exit__(self, *details: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                self.found.setdefault(name, tuple(output.shape))

        return hook


def layers(subject: Subject, shapes: Mapping[str, tuple[int, ...]], *, depth: int) -> list[Layer]:
    """Return the layers that learn, in the order of the model, as modules `depth` names deep or without parts."""
    counted: set[nn.Parameter] = set()
    found = []
    for name, kind, weights, shape in _rows(subject.model, "", depth):
        fresh = [weight for weight in weights if weight not in counted]
        counted.update(fresh)
        first = name.partition(".")[0]
        number = sum(weight.numel() for weight in fresh)
        part = subject.parts.get(first, first)
        found.append(Layer(name, kind, shapes.get(name, shape), number, len(fresh) < len(weights), part))
    return found


def _rows(module: nn.Module, name: str, depth: int) -> Iterator[tuple[str, str, list[nn.Parameter], tuple[int, ...]]]:
    """Yield name, class and weights of each row, and a shape for what is never called."""
    children = list(module.named_children())
    if name and (not children or name.count(".") + 1 >= depth):
        if weights := list(module.parameters()):
            yield name, type(module).__name__, weights, ()
        return
    for own, weight in module.named_parameters(recurse=False):
        yield f"{name}.{own}".removeprefix("."), "Parameter", [weight], tuple(weight.shape)
    for own, child in children:
        yield from _rows(child, f"{name}.{own}".removeprefix("."), depth)
