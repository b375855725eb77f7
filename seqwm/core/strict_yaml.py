"""YAML into frozen dataclasses, strictly: every key known, every type right, every error with its file and line.

The document is composed, not constructed: nodes keep their lines, nothing but plain scalars, lists and mappings is ever
made of them, and what a scalar means follows from the type its field declares. Types: str, int, float, bool, None,
Literal, unions, tuples, dict[str, X] and dataclasses of those.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from seqwm.core.errors import RecipeError

T = TypeVar("T")
_NULL, _MAPPING = "tag:yaml.org,2002:null", "tag:yaml.org,2002:map"
_SCALARS: dict[type, str] = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}


def compose(text: str, name: str, changes: Sequence[str] = ()) -> yaml.MappingNode:
    """The document as nodes, with `changes` ('train.steps=1000') put into it.

    Args:
        text: the document; its top level is a mapping.
        name: the file's name, for errors.
        changes: dotted keys and YAML values. Errors in them name the change instead of a line.

    Raises:
        RecipeError: text that is not YAML, keys given twice, changes without '='.
    """
    document = _compose(text, name)
    if not isinstance(document, yaml.MappingNode):
        raise RecipeError(f"{name}: found {_found(document)}, expected a mapping of keys to values")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError(f"--set {change}: expected key=value, for example train.steps=1000")
        _put(document, key.split("."), _compose(value, f"--set {change}"), f"--set {change}")
    return document


def build(kind: type[T], node: yaml.Node, key: str = "", special: Mapping[str, type] | None = None) -> T:
    """The dataclass `kind` out of a mapping node.

    Args:
        kind: a dataclass; keys left out take its defaults.
        node: a mapping.
        key: the dotted key of this node, for errors.
        special: types of fields that are declared as Any, by name.

    Raises:
        RecipeError: unknown or missing keys, wrong types, and what the dataclass itself refuses with a ValueError
            (its message begins with 'name: ' where it is about one field).
    """
    kinds = get_type_hints(kind) | dict(special or {})
    declared = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    entries = _entries(node, key)
    for name, (key_node, _) in entries.items():
        if name not in declared:
            known = _dotted(key, name)
            raise RecipeError(f"{place(key_node)}: {known}: unknown key; {nearest(name, declared)}")
    values: dict[str, Any] = {}
    for name, field in declared.items():
        if name in entries:
            values[name] = _value(kinds[name], entries[name][1], _dotted(key, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            if is_dataclass(kinds[name]) and isinstance(kinds[name], type):  # all of its keys may have defaults
                empty = yaml.MappingNode(_MAPPING, [], node.start_mark, node.end_mark)
                values[name] = build(kinds[name], empty, _dotted(key, name))
            else:
                expected = describe(kinds[name])
                raise RecipeError(f"{place(node)}: {_dotted(key, name)}: missing; expected {expected}")
    try:
        return kind(**values)
    except ValueError as error:
        subject = str(error).partition(":")[0]
        where = place(entries[subject][0]) if subject in entries else place(node)
        raise RecipeError(f"{where}: {_dotted(key, str(error))}") from None


def scalar(node: yaml.Node) -> Any:
    """The plain Python value of a scalar node, as YAML reads it."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{place(node)}: {node.tag} {node.value!r}: not a plain value ({error})") from None


def place(node: yaml.Node) -> str:
    """'file.yaml:12', or the change a node came from."""
    name: str = node.start_mark.name
    return name if name.startswith("--set ") else f"{name}:{node.start_mark.line + 1}"


def entry(node: yaml.MappingNode, name: str) -> yaml.Node | None:
    """The value node of a key, None where the mapping does not have it."""
    found = _entries(node, "").get(name)
    return found[1] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say about a name that is not known: the nearest one that is, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known)) or 'none'}"


def describe(kind: Any) -> str:
    """A type in words: 'an integer or null', "'constant' or 'cosine'"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(describe(part) for part in arguments)
    if origin is Literal:
        return " or ".join(repr(part) for part in arguments)
    if origin is tuple:
        if arguments[-1] is not Ellipsis:
            return f"a list of {' and '.join(describe(part) for part in arguments)}"
        return f"a list of items that are {describe(arguments[0])}"
    if origin is dict or is_dataclass(kind):
        return "a mapping"
    return _SCALARS.get(kind, str(kind))


def _compose(text: str, name: str) -> yaml.Node:
    try:
        loader = yaml.SafeLoader(text)
        loader.name = name
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark and not name.startswith("--set ") else ""
        raise RecipeError(f"{name}{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if node is None:
        return yaml.ScalarNode(_NULL, "", _mark(name), _mark(name))
    return node


def _mark(name: str) -> yaml.Mark:
    return yaml.Mark(name, 0, 0, 0, None, 0)


def _entries(node: yaml.Node, key: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    if isinstance(node, yaml.ScalarNode) and node.tag == _NULL:  # 'train:' with nothing behind it
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{place(node)}: {key}: found {_found(node)}, expected a mapping of keys to values")
    entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key_node, value in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError(f"{place(key_node)}: {key}: found {_found(key_node)} as a key, expected a word")
        if key_node.value in entries:
            first = place(entries[key_node.value][0])
            raise RecipeError(f"{place(key_node)}: {_dotted(key, key_node.value)}: given twice, first at {first}")
        entries[key_node.value] = (key_node, value)
    return entries


def _put(node: yaml.MappingNode, path: Sequence[str], value: yaml.Node, origin: str) -> None:
    mark = _mark(origin)
    name, *rest = path
    entries = _entries(node, "")
    if rest:
        inner = entries[name][1] if name in entries else None
        if inner is None or (isinstance(inner, yaml.ScalarNode) and inner.tag == _NULL):
            inner = yaml.MappingNode(_MAPPING, [], mark, mark)
        if not isinstance(inner, yaml.MappingNode):
            raise RecipeError(f"{origin}: '{name}' is {_found(inner)}, so it has no key '{rest[0]}'")
        _put(inner, rest, value, origin)
        value = inner
    key_node = (
        entries[name][0] if name in entries and rest else yaml.ScalarNode("tag:yaml.org,2002:str", name, mark, mark)
    )
    kept = [(k, v) for k, v in node.value if k.value != name]
    node.value = [*kept, (key_node, value)]


def _value(kind: Any, node: yaml.Node, key: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    wrong = RecipeError(f"{place(node)}: {key}: found {_found(node)}, expected {describe(kind)}")
    if is_dataclass(kind) and isinstance(kind, type):
        return build(kind, node, key)
    if origin in (Union, UnionType):
        parts = [part for part in arguments if part is not NoneType]
        if isinstance(node, yaml.ScalarNode) and node.tag == _NULL and len(parts) < len(arguments):
            return None
        if len(parts) == 1 and not isinstance(node, yaml.ScalarNode):  # the inner error is the more exact one
            return _value(parts[0], node, key)
        for part in parts:
            try:
                return _value(part, node, key)
            except RecipeError:
                continue
        raise wrong
    if origin is tuple:
        if not isinstance(node, yaml.SequenceNode):
            raise wrong
        items = node.value
        kinds = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(items):
            raise wrong
        return tuple(_value(part, item, f"{key}[{i}]") for i, (part, item) in enumerate(zip(kinds, items, strict=True)))
    if origin is dict:
        return {name: _value(arguments[1], item, _dotted(key, name)) for name, (_, item) in _entries(node, key).items()}
    if not isinstance(node, yaml.ScalarNode):
        raise wrong
    value = scalar(node)
    if origin is Literal:
        if value in arguments:
            return value
        raise RecipeError(f"{wrong}; {nearest(str(value), [str(a) for a in arguments])}")
    if kind is float and node.style is None:
        return _number(node, value, wrong)
    if type(value) is not kind:
        raise RecipeError(f"{wrong}{_mend(kind, value)}")
    return value


def _number(node: yaml.ScalarNode, value: Any, wrong: RecipeError) -> float:
    """YAML 1.1 reads 1e-4 as text because it lacks the point; a number field reads it as the number it is."""
    if isinstance(value, bool) or value is None:
        raise wrong
    try:
        return float(value)
    except ValueError:
        raise wrong from None


def _mend(kind: type, value: Any) -> str:
    if kind is str:
        return "; put it in quotes"
    if kind is int:
        try:
            number = float(value)
        except (TypeError, ValueError):
            return ""
        return f"; write {int(number)}" if number.is_integer() else ""
    return ""


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if node.tag == _NULL else repr(scalar(node))


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
