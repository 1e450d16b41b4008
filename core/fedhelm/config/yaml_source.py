"""YAML that a person wrote, into typed values; every error says ``file:line:col: key.path: what is wrong``.

A narrow YAML: no tags, no duplicate keys; ``on``, ``yes``, ``0777``, ``1:30`` and dates are plain text, so nothing
turns into a number or a truth value behind the writer's back. Aliases and merge keys (``<<: *name``) only where the
caller admits them; then what they expand to is bounded.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from fedhelm.errors import BadInput

__all__ = ["Document", "Key", "load_yaml", "parse", "read_yaml_file"]

Key = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the top."""

Model = TypeVar("Model", bound=pydantic.BaseModel)

_MAX_DEPTH = 64
_MAX_BYTES = 1 << 20
_MAX_DIGITS = 100  # of a whole number; Python itself refuses to write one of more than 4,300
_MAX_EXPANDED = 200_000  # values, after aliases and merge keys: some 20,000 participants
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.CSafeLoader):
    """The C scanner with the implicit types of YAML 1.2's core schema, and no others."""


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    # The order matters: the first resolver that matches wins, and every int matches the float's pattern.
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


@dataclasses.dataclass(frozen=True)
class Document:
    """A parsed file: its plain value (dict, list, str, int, float, bool, None) and where each part of it stands."""

    name: str
    value: Any
    _positions: Mapping[Key, tuple[int, int]]
    _key_positions: Mapping[Key, tuple[int, int]]
    shared: frozenset[Key] = frozenset()
    """What stands in the file once and is used again by an alias or a merge key."""

    def where(self, key: Key = (), *, of_key: bool = False) -> str:
        """Return ``file:line:col`` of a value, or of the key that names it; of its parent where it is missing."""
        while key and key not in self._positions:
            key = key[:-1]
        position = self._positions.get(key, (1, 1))
        if of_key:
            position = self._key_positions.get(key, position)
        return f"{self.name}:{position[0]}:{position[1]}"

    def error(self, key: Key, what: str, kind: type[BadInput] = BadInput) -> BadInput:
        """Return the exception that says what is wrong with the value at ``key``."""
        return kind(f"{self.where(key, of_key=True)}: {_dotted(key)}: {what}")

    def validate(self, model: type[Model]) -> Model:
        """Build ``model`` from the value, strictly: text is no number, a number is no text.

        Raises:
            BadInput: one line for each thing that is wrong; the first one stands alone.
        """
        if not isinstance(self.value, dict):
            raise BadInput(f"{self.where()}: keys and values are needed, as in `key: value`")
        try:
            return model.model_validate_json(json.dumps(self.value), strict=True)
        except pydantic.ValidationError as error:
            raise BadInput("\n".join(self._lines(error, model))) from error

    def _lines(self, error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> list[str]:
        """Return a line for each mistake: misspelt keys first, and not also as missing what they were meant to be."""
        found = error.errors(include_url=False)
        meant: dict[Key, Key] = {}
        for one in found:
            key = self._known(one["loc"])
            if one["type"] == "extra_forbidden" and (near := _nearest(model, key)) is not None:
                meant[key] = (*key[:-1], near)
        lines = [f"{self._unknown(key)} (did you mean {wanted[-1]}?)" for key, wanted in meant.items()]
        for one in found:
            key = self._known(one["loc"])
            absent = (*key, one["loc"][-1]) if one["type"] == "missing" else None
            if key not in meant and absent not in meant.values():
                lines.append(self._line(one, key))
        return list(dict.fromkeys(lines))

    def _known(self, location: tuple[str | int, ...]) -> Key:
        """Return the part of a location that the file has: pydantic adds names of union members and validators."""
        key: Key = ()
        for part in location:
            if (*key, part) in self._positions:
                key = (*key, part)
        return key

    def _unknown(self, key: Key) -> str:
        return f"{self.where(key, of_key=True)}: {_dotted(key)}: unknown key"

    def _line(self, error: Any, key: Key) -> str:
        if error["type"] == "missing":
            return f"{self.where(key)}: {_dotted((*key, error['loc'][-1]))}: missing"
        if error["type"] == "extra_forbidden":
            return self._unknown(key)
        message = str(error["msg"]).removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        value = error["input"]
        shown = f", not {json.dumps(value)}" if isinstance(value, str | int | float | bool | None) else ""
        return f"{self.where(key)}: {_dotted(key) or 'file'}: {message}{shown}"


def _dotted(key: Key) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _nearest(model: type[pydantic.BaseModel], key: Key) -> str | None:
    """Return the key that an unknown one was probably meant to be."""
    near = difflib.get_close_matches(str(key[-1]), _field_names(model, key[:-1]), n=1)
    return near[0] if near else None


def _field_names(model: type[pydantic.BaseModel], key: Key) -> list[str]:
    """Return the keys that the mapping at ``key`` may have."""
    models = [model]
    for part in key:
        if isinstance(part, str) and any(part in one.model_fields for one in models):
            fields = [one.model_fields[part] for one in models if part in one.model_fields]
            models = [found for field in fields for found in _models_in(field.annotation)]
    return [field.alias or name for one in models for name, field in one.model_fields.items()]


class _Reader:
    """Turns composed nodes into plain values and notes where each stood."""

    def __init__(self, name: str, *, aliases: bool = False) -> None:
        self.name, self.aliases = name, aliases
        self.positions: dict[Key, tuple[int, int]] = {}
        self.key_positions: dict[Key, tuple[int, int]] = {}
        self.shared: set[Key] = set()
        self._first: dict[int, Key] = {}  # id of a node, which lives as long as its document -> where it was met first
        self._merging: list[yaml.Node] = []
        self._count = 0

    def refuse(self, mark: Any, key: Key, what: str) -> BadInput:
        path = f"{_dotted(key)}: " if key else ""
        return BadInput(f"{self.name}:{mark.line + 1}:{mark.column + 1}: {path}{what}")

    def _meet(self, node: yaml.Node, key: Key, values: int = 1) -> None:
        """Note where a node stands; refuse aliases that multiply or go round in circles."""
        self._count += values
        if self._count > _MAX_EXPANDED:
            raise self.refuse(node.start_mark, (), f"aliases expand it to more than {_MAX_EXPANDED} values")
        if len(key) > _MAX_DEPTH:
            raise self.refuse(node.start_mark, (), f"nested deeper than {_MAX_DEPTH}")
        first = self._first.setdefault(id(node), key)
        if first != key:
            self.shared.add(first)

    def value(self, node: yaml.Node, key: Key) -> Any:
        if self.aliases:
            self._meet(node, key)
        self.positions[key] = (node.start_mark.line + 1, node.start_mark.column + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, (*key, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        raise self.refuse(node.start_mark, key, f"the tag {node.tag} is not allowed")

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind == "str":
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int" and len(text) <= _MAX_DIGITS:
                return int(text, 16) if text.startswith("0x") else int(text)
            if kind == "float":
                return float(text)
        except (ValueError, KeyError) as error:
            raise self.refuse(node.start_mark, key, f"{text!r:.80} is not a valid {kind}") from error
        if kind == "int":
            raise self.refuse(node.start_mark, key, f"a number of {len(text)} digits, more than {_MAX_DIGITS}")
        raise self.refuse(node.start_mark, key, f"the tag {node.tag} is not allowed")

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, (key_node, value_node) in self._pairs(node, key).items():
            mark = key_node.start_mark
            self.key_positions[(*key, name)] = (mark.line + 1, mark.column + 1)
            found[name] = self.value(value_node, (*key, name))
        return found

    def _pairs(self, node: yaml.MappingNode, key: Key) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the nodes by name; behind the mapping's own ones what merge keys add: of several the first wins."""
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.refuse(mark, key, "a key must be plain text")
            name = str(key_node.value)
            if name == "<<" and self.aliases:
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if not name or name == "<<":
                raise self.refuse(mark, key, "an empty key" if not name else "merge keys (<<) are not supported")
            if name in found:
                line = found[name][0].start_mark.line + 1
                raise self.refuse(mark, (*key, name), f"duplicate key, first given in line {line}")
            found[name] = (key_node, value_node)
        for one in merged:
            for name, pair in self._merged(one, key).items():
                found.setdefault(name, pair)
        return found

    def _merged(self, node: yaml.Node, key: Key) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self.refuse(node.start_mark, key, "a merge key (<<) needs keys and values")
        if any(node is one for one in self._merging):
            raise self.refuse(node.start_mark, key, "a merge key (<<) that merges itself")
        self._meet(node, (*key, "<<"), 1 + len(node.value))
        self._merging.append(node)
        found = self._pairs(node, key)
        self._merging.pop()
        return found


def _check_events(text: str, reader: _Reader) -> None:
    """Refuse what composing cannot survive: aliases that multiply, and depth that overflows the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent) and not reader.aliases:
            raise reader.refuse(event.start_mark, (), f"the alias *{event.anchor} is not supported: write it out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise reader.refuse(event.start_mark, (), f"nested deeper than {_MAX_DEPTH}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _compose(text: str, reader: _Reader) -> yaml.Node | None:
    try:
        _check_events(text, reader)
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{reader.name}:{mark.line + 1}:{mark.column + 1}" if mark else f"{reader.name}:1:1"
        what = " ".join(part for part in (error.problem, error.context) if part)
        raise BadInput(f"{place}: not valid YAML: {what}") from error
    except yaml.YAMLError as error:  # the reader's: a character that YAML forbids
        raise BadInput(f"{reader.name}:1:1: not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml_file(path: Path) -> bytes:
    """Return what a file holds, read once: it may be a pipe. Of one that is too large, a byte more than is parsed.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error


def load_yaml(source: Path | str | bytes, name: str | None = None, *, aliases: bool = False) -> Document:
    """Read one YAML document.

    Args:
        source: a file, or what was read from one: text, or bytes.
        name: how messages call it; the path if not given.
        aliases: admit aliases and merge keys, which is right for a file that its reader wrote or looked through.

    Raises:
        BadInput: it cannot be read, is larger than 1 MiB, is not UTF-8, or is no YAML of the narrow kind above.
    """
    name = name or (str(source) if isinstance(source, Path) else "<text>")
    if isinstance(source, Path):
        source = read_yaml_file(source)
    if isinstance(source, bytes):
        data = source
        try:
            source = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise BadInput(f"{name}:{line}:1: not UTF-8 text") from error
    if len(source) > _MAX_BYTES:
        raise BadInput(f"{name}: larger than 1 MiB")
    reader = _Reader(name, aliases=aliases)
    node = _compose(source, reader)
    value = None if node is None else reader.value(node, ())
    return Document(name, value, reader.positions, reader.key_positions, frozenset(reader.shared))


def parse(text: str, file_name: str, model: type[Model]) -> Model:
    """Parse ``text`` and build ``model`` from it.

    Raises:
        BadInput: ``file:line:col: key.path: what is wrong``, a line for each thing; the first one stands alone.
    """
    return load_yaml(text, file_name).validate(model)
