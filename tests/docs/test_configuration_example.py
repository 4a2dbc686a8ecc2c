"""config/rollbackd.toml shows every key there is, with its default, and loads."""

import re
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rollbackd.app.configuration import load_configuration, load_hooks, load_settings
from rollbackd.app.decoding import decode_all
from rollbackd.resources import resource
from rollbackd.settings import Section, Settings

EXAMPLE = "  # an example"
COMMENTED = re.compile(r"#(\[\[?[a-z._]+\]\]?|[a-z_]+ = .*)")


@pytest.fixture(scope="module")
def text() -> str:
    """The shipped file."""
    return resource("config", "rollbackd.toml").read_text(encoding="utf-8")


def uncommented(text: str, *, with_examples: bool = True) -> str:
    """Every key that stands in a comment, made active."""
    lines = []
    for line in text.splitlines():
        is_key = COMMENTED.fullmatch(line) is not None
        if is_key and not with_examples and line.endswith(EXAMPLE):
            continue
        lines.append(line.removeprefix("#") if is_key else line)
    return "\n".join(lines)


def section_of(kind: Any) -> type[Section] | None:
    """The section that a field holds, whether once, in a list or in a table of names."""
    if isinstance(kind, type) and issubclass(kind, Section):
        return kind
    origin = typing.get_origin(kind)
    if origin in (tuple, dict, types.UnionType, typing.Union):
        inner = [section_of(argument) for argument in typing.get_args(kind)]
        return next((found for found in inner if found is not None), None)
    return None


def keys_there_are(kind: type[Section], path: str = "") -> Iterator[str]:
    """Every key of a section and of those below it, as `targets.policy.mode`."""
    for field in msgspec.structs.fields(kind):
        name = f"{path}{field.name}"
        below = section_of(field.type)
        yield name
        if below is not None:
            yield from keys_there_are(below, f"{name}.")


def keys_shown(document: Any, kind: Any, path: str = "") -> Iterator[str]:
    """Every key of a document, named alike."""
    section = section_of(kind)
    if section is None:
        return
    if isinstance(document, list):
        for item in document:
            yield from keys_shown(item, section, path)
    elif typing.get_origin(kind) is dict:
        for value in document.values():
            yield from keys_shown(value, section, path)
    else:
        fields = {field.name: field.type for field in msgspec.structs.fields(section)}
        for key, value in document.items():
            yield f"{path}{key}"
            yield from keys_shown(value, fields.get(key), f"{path}{key}.")


def test_every_key_of_the_settings_is_shown_and_no_other(text: str) -> None:
    """Nothing can be set that the example doesn't show, and it shows nothing that can't be set."""
    shown = set(keys_shown(tomllib.loads(uncommented(text)), Settings))

    assert sorted(set(keys_there_are(Settings)) - shown) == []
    assert sorted(shown - set(keys_there_are(Settings))) == []


def test_the_file_loads_as_it_is_and_with_every_key(text: str, tmp_path: Path) -> None:
    """The active part is a whole configuration; so is the file with every key made active."""
    assert load_configuration(resource("config", "rollbackd.toml")).settings.targets[0].name == "shop"

    everything = tmp_path / "rollbackd.toml"
    everything.write_text(uncommented(text), encoding="utf-8")
    settings = load_settings(everything)
    assert {"rollbackd", "github", "alertmanager"} == set(settings.hooks)
    assert settings.targets[0].policy.freeze[0].why == "holidays"


def test_every_hook_that_it_shows_is_shipped(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hooks of the example load and are proved, once their secrets are there."""
    secret = "whsec_" + "A" * 32
    monkeypatch.setattr("rollbackd.app.configuration.read_secret", lambda reference: secret)
    everything = tmp_path / "rollbackd.toml"
    everything.write_text(uncommented(text), encoding="utf-8")

    hooks = load_hooks(load_configuration(everything))

    assert set(hooks) == {path.stem for path in resource("hooks").glob("*.toml")}


def test_a_commented_key_shows_its_default(text: str) -> None:
    """A key in a comment that isn't marked as an example may be made active without a change."""
    path: list[str] = []
    compared = 0
    for line in text.splitlines():
        active = line.removeprefix("#") if COMMENTED.fullmatch(line) else line
        if table := re.fullmatch(r"\[\[?([a-z._]+)\]\]?", active):
            path = table[1].split(".")
        key = re.match(r"#([a-z_]+) = ", line)
        if key is None or not COMMENTED.fullmatch(line) or line.endswith(EXAMPLE):
            continue
        field = field_at([*path, key[1]])
        problems: list[str] = []
        shown = decode_all(tomllib.loads(active)[key[1]], field.type, key[1], problems)
        assert problems == []
        assert shown == field.get_default(), f"{'.'.join(path)}.{key[1]}"
        compared += 1
    assert compared > 40


def test_an_example_says_what_the_default_is_where_there_is_one(text: str) -> None:
    """What is marked as an example has no default that TOML could say, or is required."""
    for line in text.splitlines():
        if line.endswith(EXAMPLE):
            assert COMMENTED.fullmatch(line), line


class Found(msgspec.Struct, frozen=True):
    """A field and what it is without a word in the file."""

    type: Any
    default: Any
    default_factory: Any

    def get_default(self) -> Any:
        """The default, made where it has to be."""
        return self.default if self.default is not msgspec.NODEFAULT else self.default_factory()


def field_at(path: list[str]) -> Found:
    """The field that a path of keys leads to; a name within a table of names (`hooks.github`) is passed over."""
    kind: Any = Settings
    found = None
    for key in path:
        fields = {field.name: field for field in msgspec.structs.fields(section_of(kind) or Section)}
        if typing.get_origin(kind) is dict:
            kind = section_of(kind)
            continue
        found = fields[key]
        kind = found.type
    assert found is not None
    return Found(found.type, found.default, found.default_factory)
