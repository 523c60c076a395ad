"""From arguments and YAML to a dataclass, keeping the place that each value came from.

jsonargparse turns a value into the type of its field and prints the help. What is written here says where a mistake is:
the file and line, or the flag.
"""

import os
import textwrap
from argparse import SUPPRESS, ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser

from tasks.errors import InputError

NULL, TEXT, LIST = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "str", "seq"))


class Written(NamedTuple):
    """A value as it was written, and where: in a file, or as a flag with its dashes."""

    source: str
    node: yaml.Node

    @property
    def place(self) -> str:
        """The flag, or the file and line."""
        mark = self.node.start_mark
        return self.source if self.source.startswith("--") or mark is None else f"{self.source}:{mark.line + 1}"

    @property
    def is_null(self) -> bool:
        """Whether it says `null`, in a file also whether it says nothing."""
        return self.node.tag == NULL

    @property
    def text(self) -> str:
        """What jsonargparse is to read."""
        return self.node.value if isinstance(self.node, yaml.ScalarNode) else yaml.serialize(self.node)


class Settings:
    """What is given for the fields of a dataclass, by dotted key; problems are collected, so that all are reported."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self.types = _types(kind)
        self.given: dict[str, Written] = {}
        self.problems: list[str] = []

    def take_arguments(self, arguments: Sequence[str]) -> None:
        """Take flags, the files that `--config` names, and values for the fields that have no default.

        The last of those, if it is a list, takes all values that are left.
        """
        required = [name for name, _, value in _fields(self.kind, MISSING) if value is MISSING]
        lists = [name for name in required[-1:] if _is_list(self.types[name])]
        waiting, listed = list(arguments), list[yaml.Node]()
        while waiting:
            flag, equals, text = waiting.pop(0).partition("=")
            switch = self.types.get(flag.removeprefix("--")) is bool
            if switch and not equals and (not waiting or waiting[0].startswith("--")):
                text = "true"
            elif flag.startswith("--") and not equals:
                if not waiting or waiting[0].startswith("--"):
                    self.problems.append(f"{flag} wants a value")
                    continue
                text = waiting.pop(0)
            elif not flag.startswith("--"):
                name, text = next((name for name in required if name not in self.given), None), flag + equals + text
                if name in (None, *lists) and lists:
                    listed.append(yaml.ScalarNode(TEXT, text))
                    self.given[lists[0]] = Written(f"--{lists[0]}", yaml.SequenceNode(LIST, listed))
                    continue
                if name is None:
                    self.problems.append(f"{text} stands alone; settings are given as --name value")
                    continue
                flag = f"--{name}"
            if flag == "--config":
                self.take_mapping(Written(text, _compose(_read_text(text), text)))
            else:
                self.take_flag(flag, text)

    def take_flag(self, flag: str, text: str) -> None:
        """Take one value; what holds dataclasses is given as YAML."""
        key = flag.removeprefix("--")
        if key not in self.types:
            self.problems.append(f"{flag} is not a setting; the nearest is --{self._nearest(key)}")
        elif is_dataclass(self.types[key]):
            first = next(below for below in self.types if below.startswith(f"{key}."))
            self.problems.append(f"{flag} is a group; its settings are given one by one, as in --{first}")
        elif _inner(self.types[key]):
            self.given[key] = Written(flag, _compose(text, flag))
        else:
            self.given[key] = Written(flag, yaml.ScalarNode(NULL if text == "null" else TEXT, text))

    def take_mapping(self, written: Written, group: str = "") -> None:
        """Take the values of a YAML mapping, under the key of its group."""
        if not isinstance(written.node, yaml.MappingNode):
            if not written.is_null:
                self.problems.append(f"{written.place}: {group or 'a file'} holds name: value, got {_shown(written)}")
            return
        seen: set[str] = set()
        for name, node in written.node.value:
            key = f"{group}.{name.value}".removeprefix(".")
            place = Written(written.source, name).place
            if key not in self.types:
                self.problems.append(f"{place}: {key} is not a setting; the nearest is {self._nearest(key)}")
            elif key in seen:
                self.problems.append(f"{place}: {key} is set twice")
            elif is_dataclass(self.types[key]):
                self.take_mapping(Written(written.source, node), key)
            else:
                self.given[key] = Written(written.source, node)
            seen.add(key)

    def build(self, default: Any = None) -> Any:
        """Return the dataclass, filled up from `default` or its own defaults, or None after a problem."""
        return self._build(self.kind, MISSING if default is None else default, "")

    def _build(self, kind: Any, default: Any, prefix: str) -> Any:
        problems, values = len(self.problems), {}
        for name, hint, value in _fields(kind, default):
            key = prefix + name
            if is_dataclass(hint):
                value = self._build(hint, value, f"{key}.")
            elif key in self.given:
                value = self._value(hint, self.given[key], key)
            elif value is MISSING:
                self.problems.append(f"--{key} is missing")
            values[name] = value
        if len(self.problems) > problems:
            return None
        try:
            return kind(**values)
        except ValueError as error:
            self.problems.append(str(error))

    def _value(self, hint: Any, written: Written, key: str) -> Any:
        kind, inner, node = _without_none(hint), _inner(hint), written.node
        if written.is_null and kind is not hint:
            return None
        if is_dataclass(kind) and isinstance(node, yaml.MappingNode):
            item = Settings(kind)
            item.take_mapping(written)
            built = item.build()
            self.problems += item.problems
            return built
        if inner and _is_list(kind) and isinstance(node, yaml.SequenceNode):
            values = [self._value(inner, Written(written.source, item), key) for item in node.value]
            return values if get_origin(kind) is list else tuple(values)
        if not inner and (isinstance(node, yaml.ScalarNode) or _is_list(kind)):
            alone = [yaml.serialize(yaml.SequenceNode(LIST, [node]))] if _is_list(kind) else []
            for text in (written.text, *alone):  # one value is a list of one
                try:
                    return _typed(kind, os.path.expanduser(text) if text.startswith("~/") else text)
                except ArgumentError:
                    pass
        name = "" if written.source == f"--{key}" else f": {key}"
        self.problems.append(f"{written.place}{name} wants {_wanted(hint)}, got {_shown(written)}")

    def _nearest(self, key: str) -> str:
        """Compare whole keys and also their last parts, so that a forgotten prefix is found."""

        def likeness(known: str) -> float:
            pairs = (key, known), (key.rpartition(".")[2], known.rpartition(".")[2])
            return sum(SequenceMatcher(None, *pair).ratio() for pair in pairs)

        return max(self.types, key=likeness)


def print_help(recipe_class: Any) -> None:
    """Print every field with its docstring, type and default."""
    usage = "%(prog)s [--config FILE] [--name VALUE] ..."
    parser = ArgumentParser(description=recipe_class.__doc__, usage=usage, print_config=None)
    parser.add_argument(
        "--config", metavar="FILE", help="Settings as YAML; may be given several times.", default=SUPPRESS
    )
    _add_help(parser, recipe_class, MISSING, "--")
    parser.print_help()


def _add_help(parser: ArgumentParser, kind: Any, default: Any, prefix: str) -> None:
    group = parser.add_argument_group(kind.__doc__.partition("\n")[0].rstrip("."))
    docs = _docs(kind)
    for name, hint, value in _fields(kind, default):
        inner, flag = _inner(hint), prefix + name
        shown = "none, it must be given" if value is MISSING else value
        if is_dataclass(hint):
            _add_help(parser, hint, value, f"{flag}.")
        elif inner:
            each = " ".join(f"{field}: {text}" for field, text in _docs(inner).items())
            group.add_argument(flag, metavar="YAML", default=shown, help=f"{docs[name]} In each, {each}")
        elif _is_list(_without_none(hint)):
            kind_name = str(hint).replace("pathlib.", "")
            group.add_argument(flag, metavar="[ITEM,...]", default=shown, help=f"{docs[name]} (type: {kind_name})")
        else:
            group.add_argument(flag, type=hint, default=shown, help=docs[name])


def _docs(kind: Any) -> dict[str, str]:
    """Return the docstring of each field, on one line."""
    docs = dict.fromkeys((field.name for field in fields(kind)), "(no description)")
    for entry in parse_from_object(kind).params:
        docs[entry.arg_name] = " ".join((entry.description or "").split())
    return docs


def _fields(kind: Any, default: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, type and default of each field; the defaults of the instance `default`, where there is one."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        value = field.default if field.default_factory is MISSING else field.default_factory()
        yield field.name, hints[field.name], value if default is MISSING else getattr(default, field.name)


def _types(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of every key, groups included."""
    types: dict[str, Any] = {}
    for name, hint, _ in _fields(kind, MISSING):
        types |= {prefix + name: hint} | (_types(hint, f"{prefix}{name}.") if is_dataclass(hint) else {})
    return types


def _typed(kind: Any, text: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser.parse_args([f"--value={text}"]).value


def _read_text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--config {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--config {name}: byte {error.start} is not UTF-8") from None


def _compose(text: str, source: str) -> yaml.Node:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader) or yaml.ScalarNode(NULL, "")
    except yaml.MarkedYAMLError as error:
        place = Written(source, yaml.ScalarNode(TEXT, "", error.problem_mark)).place
        raise InputError(f"{place}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: {str(error).splitlines()[0]}") from None


def _without_none(hint: Any) -> Any:
    """Return T for `T | None`; a configuration has no other unions."""
    if get_origin(hint) in (Union, UnionType):
        return next(kind for kind in get_args(hint) if kind is not NoneType)
    return hint


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


def _inner(hint: Any) -> Any:
    """Return the dataclass that a value of this type is, or is a list of."""
    return hint if is_dataclass(hint) else next(filter(None, map(_inner, get_args(hint))), None)


def _wanted(hint: Any) -> str:
    kind, inner = _without_none(hint), _inner(hint)
    if kind is not hint:
        return f"{_wanted(kind)} or null"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if inner:
        names = ", ".join(field.name for field in fields(inner))
        return f"{'' if inner is kind else 'a list of '}{{name: value}} with the names {names}"
    if _is_list(kind):
        items = [_wanted(item) for item in get_args(kind) if item is not Ellipsis]
        return f"a list [{', '.join(items if len(items) > 1 else [*items, '...'])}]"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return words.get(kind, str(kind))


def _shown(written: Written) -> str:
    return textwrap.shorten(written.text, 80, placeholder=" ...") or "nothing"
