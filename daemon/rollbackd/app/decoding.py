"""Decoding a TOML document into frozen settings, strictly, and naming every fault at once with its path."""

import difflib
import types
import typing
from enum import Enum
from typing import Any

import msgspec

from rollbackd.settings import Duration, SecretReference, parse_duration


def decode_all(document: Any, kind: Any, path: str, problems: list[str]) -> Any:
    """Decode as `kind`; every fault is added to `problems` as `path: what is wrong, what would be right`.

    Returns:
        The value, or None where there were faults below it; unknown keys alone don't keep a table from being looked
        at further.
    """
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(document, kind, path, problems)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        if not isinstance(document, list):
            problems.append(f"{path}: a list is expected")
            return None
        return tuple(
            decode_all(item, arguments[0], f"{path}[{i}]", problems) for i, item in enumerate(document)
        )
    if origin is dict:
        if not isinstance(document, dict):
            problems.append(f"{path}: a table is expected")
            return None
        return {
            key: decode_all(value, arguments[1], _join(path, key), problems)
            for key, value in document.items()
        }
    if origin in (types.UnionType, typing.Union):
        inner = [argument for argument in arguments if argument is not types.NoneType]
        return decode_all(document, inner[0], path, problems)
    return _leaf(document, kind, path, problems)


def _struct(document: Any, kind: type[msgspec.Struct], path: str, problems: list[str]) -> Any:
    if not isinstance(document, dict):
        problems.append(f"{path or 'the file'}: a table is expected")
        return None
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    values = {}
    faults: list[str] = []
    for key, value in document.items():
        if key in fields:
            below: list[str] = []
            values[key] = decode_all(value, fields[key].type, _join(path, key), below)
            problems += below
            if below and not _whole(values[key]):
                faults += below
            continue
        near = difflib.get_close_matches(key, fields, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(fields))}"
        problems.append(f"{_join(path, key)}: unknown key{hint}")
    for name, field in fields.items():
        if field.required and name not in document:
            faults.append(name)
            problems.append(f"{_join(path, name)}: is required")
    return None if faults else kind(**values)


def _whole(value: Any) -> bool:
    """Whether a value was decoded in all its parts."""
    if isinstance(value, tuple):
        return all(_whole(item) for item in value)
    if isinstance(value, dict):
        return all(_whole(item) for item in value.values())
    return value is not None


def _leaf(document: Any, kind: Any, path: str, problems: list[str]) -> Any:
    try:
        if kind is Duration:
            return parse_duration(document)
        if kind is SecretReference:
            return SecretReference.parse(document)
        return msgspec.convert(document, kind)
    except (ValueError, msgspec.ValidationError) as error:
        allowed = _allowed(kind)
        problems.append(f"{path}: {error}" + (f"; it is one of {', '.join(allowed)}" if allowed else ""))
        return None


def _allowed(kind: Any) -> list[str]:
    """The values that an enum or a Literal has."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(member.value) for member in kind]
    return (
        [str(value) for value in typing.get_args(kind)] if typing.get_origin(kind) is typing.Literal else []
    )


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
