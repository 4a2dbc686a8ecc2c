"""Hook files: how one sender authenticates and what its payloads mean. Declarative, and proved by their fixtures at load."""

import difflib
import functools
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jmespath
import msgspec
from jmespath import functions
from jmespath.exceptions import JMESPathError

from rollbackd.core.events import Category, Event, EventKind, Severity, required_field_missing
from rollbackd.errors import ConfigurationError, DeliveryRefusedError
from rollbackd.intake.authentication import Scheme, StandardWebhooks

MOST_EVENTS = 1_000
MOST_DEEP = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Functions(functions.Functions):  # type: ignore[misc]
    """The functions that JMESPath lacks for what senders send."""

    @functions.signature({"types": ["string", "null"]})  # type: ignore[untyped-decorator]
    def _func_parse_json(self, text: str | None) -> Any:
        try:
            return json.loads(text or "null")
        except (ValueError, RecursionError):
            return None

    @functions.signature({"types": ["string", "null"]}, {"types": ["string"]})  # type: ignore[untyped-decorator]
    def _func_split(self, text: str | None, separator: str) -> list[str]:
        return (text or "").split(separator or None)

    @functions.signature({"types": ["string", "null"]})  # type: ignore[untyped-decorator]
    def _func_lower(self, text: str | None) -> str:
        return (text or "").lower()


OPTIONS = jmespath.Options(custom_functions=Functions())


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one field is found: an expression, then a table of words, then what stands in when there is nothing."""

    expression: str
    table: dict[str, str] = {}
    otherwise: str = ""


class Meaning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one kind of payload means. `each` names a list of which every item is an event; `as_is` a native event."""

    when: str = ""
    each: str = ""
    as_is: str = ""
    kind: Part | str = ""
    map: dict[str, Part | str] = {}
    lacking: Literal["refuse", "ignore"] = "refuse"


class Ignored(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Payloads that are authentic and of no interest."""

    when: str
    because: str


class DeliveryIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes it the same delivery again. An id that isn't signed can be forged, so the body's digest joins it."""

    id: str = ""
    type: str = ""
    id_is_signed: bool = False


class Fixture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A payload and what it must mean: the events, or the reason why there are none."""

    body: str
    headers: dict[str, str] = {}
    expect: list[dict[str, Any]] = []
    ignored: str = ""


class HookFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    version: Literal[1]
    description: str
    authentication: Scheme
    fixtures: list[Fixture]
    delivery: DeliveryIdentity = DeliveryIdentity()
    malformed: Annotated[int, msgspec.Meta(ge=200, le=499)] = 400
    ignore: list[Ignored] = []
    events: list[Meaning] = []


class Interpretation(msgspec.Struct, frozen=True, kw_only=True):
    """What a delivery means: events, or the reason why it means nothing to us."""

    events: tuple[Event, ...] = ()
    ignored_because: str = ""


class Hook:
    """A loaded hook: expressions compiled, fixtures proved."""

    def __init__(self, name: str, file: HookFile) -> None:
        self.name = name
        self.file = file
        texts = [file.delivery.id, file.delivery.type, *(i.when for i in file.ignore)]
        for meaning in file.events:
            texts += [meaning.when, meaning.each, meaning.as_is]
            parts = [meaning.kind, *meaning.map.values()]
            texts += [part.expression if isinstance(part, Part) else part for part in parts]
        self._compiled = {text: _compile(text) for text in texts if text}

    def interpret(self, headers: Mapping[str, str], body: Any) -> Interpretation:
        """What a parsed body means. Pure: the same delivery always means the same.

        Raises:
            DeliveryRefusedError: with the path of the fault, when it should mean something and lacks a field for it.
        """
        scope = {"body": body, "headers": headers}
        for ignored in self.file.ignore:
            if self._find(ignored.when, scope):
                return Interpretation(ignored_because=ignored.because)
        for meaning in self.file.events:
            if meaning.when and not self._find(meaning.when, scope):
                continue
            return self._events(meaning, scope)
        return Interpretation(ignored_because="nothing in the hook file maps it")

    def identity(self, headers: Mapping[str, str], body_sha256: str) -> str:
        """What makes it the same delivery again."""
        scope = {"headers": headers, "body": None}
        delivery = self.file.delivery
        if delivery.id_is_signed:
            kind = str(self._find(delivery.type, scope) or "") if delivery.type else ""
            return f"{self.sender_id(headers)}\n{kind}"
        # The kind is as unsigned as the id: one body sent again as something else would else mean something new.
        return body_sha256

    def sender_id(self, headers: Mapping[str, str]) -> str:
        """The sender's own id of the delivery, signed or not."""
        delivery = self.file.delivery
        return str(self._find(delivery.id, {"headers": headers, "body": None}) or "") if delivery.id else ""

    def _events(self, meaning: Meaning, scope: dict[str, Any]) -> Interpretation:
        if not meaning.each:
            return self._event(meaning, scope, "$")
        items = self._find(meaning.each, scope)
        if not isinstance(items, list):
            raise DeliveryRefusedError(
                self.file.malformed,
                "malformed",
                f"$.{meaning.each.removeprefix('body.')}: a list is expected",
            )
        if len(items) > MOST_EVENTS:
            raise DeliveryRefusedError(
                413, "too_large", f"{len(items)} items; at most {MOST_EVENTS} are taken"
            )
        path = f"$.{meaning.each.removeprefix('body.')}"
        found = [
            self._event(meaning, {**scope, "item": item, "index": i}, f"{path}[{i}]")
            for i, item in enumerate(items)
        ]
        events = tuple(event for one in found for event in one.events)
        because = "; ".join(dict.fromkeys(one.ignored_because for one in found if one.ignored_because))
        return Interpretation(
            events=events, ignored_because=because or ("" if events else "it holds no item")
        )

    def _event(self, meaning: Meaning, scope: dict[str, Any], path: str) -> Interpretation:
        if meaning.as_is:
            values = self._find(meaning.as_is, scope)
            path = f"$.{meaning.as_is.removeprefix('body.')}" if "." in meaning.as_is else path
        else:
            kind = self._value(meaning.kind, scope)
            if not kind or kind == "ignore":
                return Interpretation(ignored_because=self._unmapped(meaning, scope))
            values = {name: self._value(part, scope) for name, part in meaning.map.items()}
            values = {name: value for name, value in values.items() if value not in (None, "")}
            values["kind"] = kind
        try:
            event = msgspec.convert(values, Event)
        except msgspec.ValidationError as error:
            return self._lacking(meaning, _mapped(located(str(error), path), meaning))
        missing = required_field_missing(event)
        if missing:
            needed = "version or deployment" if missing == "version" else missing
            return self._lacking(meaning, f"{path}.{missing}: {event.kind} can't do without {needed}")
        for name in ("occurred_at", "committed_at"):
            at = getattr(event, name)
            if at is not None and at.tzinfo is None:
                return self._lacking(meaning, f"{path}.{name}: {at.isoformat()} has no time zone")
            if at is not None and at.year == 1:
                # Go's zero time, which Alertmanager sends, means "not said".
                event = msgspec.structs.replace(event, **{name: None})
        return Interpretation(events=(event,))

    def _lacking(self, meaning: Meaning, fault: str) -> Interpretation:
        if meaning.lacking == "ignore":
            return Interpretation(ignored_because=fault)
        raise DeliveryRefusedError(self.file.malformed, "malformed", fault)

    def _unmapped(self, meaning: Meaning, scope: dict[str, Any]) -> str:
        if isinstance(meaning.kind, Part):
            return f"{meaning.kind.expression} is {_short(self._find(meaning.kind.expression, scope))}, which means nothing here"
        return "it has no kind"

    def _value(self, part: Part | str, scope: dict[str, Any]) -> Any:
        if isinstance(part, str):
            return self._find(part, scope)
        value = self._find(part.expression, scope)
        if part.table:
            return part.table.get(str(value), part.otherwise)
        return value if value not in (None, "") else part.otherwise

    def _find(self, text: str, scope: dict[str, Any]) -> Any:
        try:
            return self._compiled[text](scope)
        except (JMESPathError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            # What an expression meets is the sender's; a function of JMESPath may stumble over it in any of these ways.
            raise DeliveryRefusedError(self.file.malformed, "malformed", f"{text}: {error}"[:300]) from None


def _compile(text: str) -> Callable[[dict[str, Any]], Any]:
    """An expression as a function. A plain path, which most are, is walked without the interpreter: a tenth of the cost."""
    compiled = jmespath.compile(text)
    unknown = _functions(compiled.parsed) - set(Functions.FUNCTION_TABLE)
    if unknown:
        raise ConfigurationError([f"{text}: there is no function {', '.join(sorted(unknown))}"])
    path = _plain_path(compiled.parsed)
    if path is None:
        return functools.partial(compiled.search, options=OPTIONS)

    def walk(scope: dict[str, Any]) -> Any:
        found: Any = scope
        for name in path:
            # JMESPath's own rule: a field of what is no object is null.
            if not isinstance(found, dict):
                return None
            found = found.get(name)
        return found

    return walk


def _functions(node: dict[str, Any]) -> set[str]:
    """The functions that an expression calls."""
    found = {str(node["value"])} if node["type"] == "function_expression" else set()
    return found.union(*(_functions(child) for child in node["children"] if isinstance(child, dict)))


def _plain_path(node: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of a path that consists of fields alone; None for every other expression."""
    if node["type"] == "field":
        return (node["value"],)
    if node["type"] == "subexpression":
        parts = [_plain_path(child) for child in node["children"]]
        if all(part is not None for part in parts):
            return tuple(name for part in parts for name in part or ())
    return None


def load_hook(name: str, path: Path) -> Hook:
    """Load a hook file and prove it by its fixtures.

    Raises:
        ConfigurationError: with every fault: syntax, unknown keys, expressions, fixtures that come out otherwise.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        hook = Hook(name, msgspec.convert(document, HookFile))
    except OSError as error:
        raise ConfigurationError(
            [f"hooks.{name}: the hook file {path} can't be read: {error.strerror}"]
        ) from None
    except ConfigurationError as error:
        raise ConfigurationError([f"hooks.{name}: {problem}" for problem in error.problems]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, JMESPathError) as error:
        raise ConfigurationError([f"hooks.{name}: {path}: {error}"]) from None
    problems = [f"hooks.{name}: {problem}" for problem in _faults(hook.file)]
    if not problems:
        problems += [p for fixture in hook.file.fixtures for p in _prove(hook, fixture, path.parent)]
    if not hook.file.fixtures:
        problems.append(f"hooks.{name}: {path} has no fixture: a hook proves itself by at least one")
    if problems:
        raise ConfigurationError(problems)
    return hook


def parse_body(body: bytes) -> Any:
    """Parse JSON strictly: no NaN, no duplicate keys, no bottomless nesting.

    Raises:
        DeliveryRefusedError: 400 with what is wrong.
    """
    try:
        text = body.decode()
        document = _DECODER.decode(text)
        if text.count("[") + text.count("{") > MOST_DEEP:
            _require_shallow(document)
        if _SURROGATE.search(text):
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except RecursionError:
        raise DeliveryRefusedError(400, "malformed", "$: nested too deep") from None
    except UnicodeDecodeError:
        raise DeliveryRefusedError(400, "malformed", "$: not UTF-8") from None
    except UnicodeEncodeError:
        raise DeliveryRefusedError(400, "malformed", "$: an escape is half a character") from None
    except ValueError as error:
        raise DeliveryRefusedError(400, "malformed", f"$: not JSON: {error}") from None


def _require_shallow(document: Any) -> None:
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MOST_DEEP):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise DeliveryRefusedError(400, "malformed", f"$: nested deeper than {MOST_DEEP}")


def _faults(file: HookFile) -> list[str]:
    """What can be seen to be wrong before any payload comes."""
    problems: list[str] = []
    if file.delivery.id_is_signed and not (
        isinstance(file.authentication, StandardWebhooks) and file.delivery.id == 'headers."webhook-id"'
    ):
        problems.append(
            "delivery.id_is_signed: only webhook-id is, and only with the scheme standard_webhooks"
        )
    for index, ignored in enumerate(file.ignore):
        if not ignored.when:
            problems.append(
                f"ignore[{index}].when: an expression is needed; an empty one would ignore everything"
            )
    for index, meaning in enumerate(file.events):
        where = f"events[{index}]"
        if not meaning.as_is and not (
            meaning.kind.expression if isinstance(meaning.kind, Part) else meaning.kind
        ):
            problems.append(f"{where}: 'kind' with an expression is needed, or 'as_is'")
        for name, part in meaning.map.items():
            if name == "kind" or name not in _FIELDS:
                near = difflib.get_close_matches(name, _FIELDS, 1)
                problems.append(
                    f"{where}.map.{name}: an event has no such field"
                    + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(_FIELDS)}")
                )
            if not (part.expression if isinstance(part, Part) else part):
                problems.append(f"{where}.map.{name}: an expression is needed")
        for name, part in (("kind", meaning.kind), *meaning.map.items()):
            if isinstance(part, Part) and name in _WORDS:
                words = [*part.table.values(), *([part.otherwise] if part.otherwise else [])]
                problems += [
                    f"{where}.{name}: {word!r} is none of {', '.join(_WORDS[name])}"
                    for word in words
                    if word not in _WORDS[name]
                ]
    return problems


_FIELDS = tuple(field.name for field in msgspec.structs.fields(Event))
_WORDS = {"kind": (*EventKind, "ignore"), "category": tuple(Category), "severity": tuple(Severity)}


def _prove(hook: Hook, fixture: Fixture, folder: Path) -> list[str]:
    where = f"hooks.{hook.name}: fixture {fixture.body}"
    path = (folder / fixture.body).resolve()
    if not path.is_relative_to(folder.resolve()):
        return [f"{where}: lies outside {folder}"]
    headers = {name.lower(): value for name, value in fixture.headers.items()}
    try:
        found = hook.interpret(headers, parse_body(path.read_bytes()))
    except OSError as error:
        return [f"{where}: can't be read: {error.strerror}"]
    except DeliveryRefusedError as error:
        return [f"{where}: is refused: {error}"]
    events = [msgspec.to_builtins(event) for event in found.events]
    problems = []
    if len(events) != len(fixture.expect):
        problems.append(f"{where}: means {len(events)} events, expected are {len(fixture.expect)}")
    for index, (expected, event) in enumerate(zip(fixture.expect, events, strict=False)):
        for name, value in expected.items():
            if event.get(name, "") != value:
                problems.append(
                    f"{where}: event {index}: {name} is {event.get(name, '')!r}, expected is {value!r}"
                )
    if not fixture.expect and not fixture.ignored:
        problems.append(f"{where}: proves nothing: give 'expect', or the reason in 'ignored'")
    if fixture.ignored and fixture.ignored not in found.ignored_because:
        problems.append(
            f"{where}: ignored because {found.ignored_because!r}, expected is {fixture.ignored!r}"
        )
    return problems


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"the key {twice[:80]!r} stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_no_constant)


def located(fault: str, path: str) -> str:
    """msgspec ends its sentences in `- at `$.field``; put the payload's own path there."""
    sentence, _, inner = fault.partition(" - at `")
    return f"{path}{inner.removesuffix('`').removeprefix('$')}: {sentence}"


def _mapped(fault: str, meaning: Meaning) -> str:
    """A fault of an event's field, with the expression that the field was read by."""
    for name, part in meaning.map.items():
        if f".{name}:" in fault or f"field `{name}`" in fault:
            return f"{fault}; it is read from {part.expression if isinstance(part, Part) else part}"
    return fault


def _short(value: Any) -> str:
    return repr(value)[:100] if isinstance(value, str | int | float | bool | None) else type(value).__name__
