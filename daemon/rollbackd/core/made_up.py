"""Made-up values for a database's rows, as text that PostgreSQL reads: chosen by type, row number and hints alone.

The values are meant to be in the way: as long as the type lets them be, beyond the next smaller type, not in ASCII, not
at midnight. What a downgrade narrows must meet something that doesn't fit.
"""

import enum
import itertools
import json
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation, localcontext

import msgspec


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A type's shape: `name` is PostgreSQL's own (`int4`, `varchar`) or enum, array, range, multirange, composite."""

    name: str
    limit: int | None = None
    """Characters of varchar(n) and char(n), bits of bit(n), digits of numeric(p, s), dimensions of vector(n)."""
    scale: int = 0
    labels: tuple[str, ...] = ()
    parts: tuple["Kind", ...] = ()
    """The element of an array or range, the attributes of a composite."""
    delimiter: str = ","


class Face(enum.StrEnum):
    """What a column shows in a row."""

    VALUE = "value"
    NULL = "null"
    DEFAULT = "default"


class Wish(msgspec.Struct, frozen=True):
    """The face for one row, and how many rows before it had a value."""

    face: Face
    turn: int


_V, _N, _D = Face.VALUE, Face.NULL, Face.DEFAULT
# By (nullable, has a default). Two values come before the NULL, so that they can be the same.
_PATTERNS = {
    (False, False): (_V,),
    (True, False): (_V, _V, _N),
    (False, True): (_V, _V, _D),
    (True, True): (_V, _D, _N, _V),
}
_SHORT_PATTERNS = {
    (False, False): (_V,),
    (True, False): (_V, _N),
    (False, True): (_V, _D),
    (True, True): (_V, _N, _D),
}


def wish(row: int, rows: int, *, nullable: bool, has_default: bool) -> Wish:
    """What the column shows in row number `row` of about `rows`."""
    pattern = (_PATTERNS if rows >= 3 else _SHORT_PATTERNS)[nullable, has_default]
    rounds, place = divmod(row, len(pattern))
    return Wish(pattern[place], rounds * pattern.count(_V) + pattern[:place].count(_V))


def number_for(row: int, turn: int, kind: Kind, place: tuple[int, int] | None) -> int:
    """The number of the value in that row.

    `place` is the column's position in a unique index of so many columns, None when it is in none. From row to row
    exactly one column of an index moves on: the rows differ, and yet each column repeats itself.
    """
    if place is not None:
        position, width = place
        return (row + width - 1 - position) // width
    return turn if is_small(kind) else turn // 2


def is_small(kind: Kind) -> bool:
    """Whether all values of the type can be shown, one after the other."""
    return kind.name in ("bool", "enum")


def wide(number: int) -> int:
    """A number whose value fills its type; different for each number."""
    return number * 3


def tame(number: int) -> int:
    """A number whose value is short, small and positive; different for each number."""
    return number * 3 + 1


# --- Values by type ---------------------------------------------------------------------------------------------------

_FILLER = "äÉß ñ~" * 60  # in Latin-1, as not every database is in UTF-8
_LONG = 300  # beyond the varchar(255) that a text column may become
_MOST_DIGITS = 2100  # what numeric(p, s) can ask for, 1000 on each side of the point
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_VECTORS = ("vector", "halfvec")  # pgvector's; the limit is the number of dimensions
_INTEGERS = {"int2": 16, "int4": 32, "int8": 64}
_TEXTS = ("text", "varchar", "bpchar", "citext", "name")
_EPOCH = datetime(2024, 2, 29, 13, 37, 42, 123456, tzinfo=UTC)
# By turns: `n` is the number, `m` the one after it, `a`, `b` and `c` its bytes.
_IN_TURN: dict[str, tuple[str, ...]] = {
    "bool": ("true", "false"),
    "float4": ("{m}.5e20", "{n}.25", "-{n}.125"),
    "float8": ("{m}.5e100", "{n}.25", "-{n}.123456789"),
    "bytea": ("\\x00ff{n:04x}{long}", "\\x00ff{n:04x}", "\\x{n:04x}"),
    "json": ('{{"n": {n}, "größe": [1, null, {{"tief": true}}], "leer": null}}',),
    "jsonb": ('{{"n": {n}, "größe": [1, null, {{"tief": true}}], "leer": null}}',),
    "inet": ("2001:db8::{m:x}/64", "192.0.{b}.{c}", "10.{a}.{b}.{c}/8"),
    "interval": ("1 year 2 mons {n} days 04:05:06.789", "{n} days", "-{n} hours"),
    "tsquery": ("'grüße{n}' & 'welt'",),
    "tsvector": ("'grüße{n}':1 'welt':2A",),
    "xml": ('<made up="{n}">Grüße</made>',),
    "uuid": ("5eed0000-0000-4000-8000-{n:012x}",),
    "macaddr": ("08:00:2b:{a:02x}:{b:02x}:{c:02x}",),
    "macaddr8": ("08:00:2b:ff:fe:{a:02x}:{b:02x}:{c:02x}",),
    "cidr": ("10.{b}.{c}.0/24",),
    "point": ("({n}.5,-2.25)",),
    "line": ("{{1,-1,{n}}}",),
    "lseg": ("[(0,{n}),(1.5,2)]",),
    "box": ("({n}.5,3),(0,0)",),
    "path": ("[(0,0),({n},1.5),(2,0)]",),
    "polygon": ("((0,0),({n},1.5),(2,0))",),
    "circle": ("<(1.5,2),{m}>",),
    "pg_lsn": ("16/{n:X}",),
    "oid": ("{m}",),
    "xid": ("{m}",),
    "xid8": ("{m}",),
    "regclass": ("pg_class", "pg_type"),
    "regtype": ("integer", "text"),
    "jsonpath": ("$.größe[{n}]",),
    "hstore": ('"größe"=>"{n}", "leer"=>NULL',),
    "money": ("{m}234.56",),
    "char": ("{digit}",),
}


def made_up(kind: Kind, number: int) -> str | None:
    """Value number `number` of that type; None when nothing is known about the type.

    Numbers divisible by three give values that fill the type, the next ones plain values, the ones after that other
    corners (negative numbers, NULL as an element). Different numbers give different values as long as the type has any.
    """
    if kind.name in _TEXTS:
        return _text(kind, number)
    if kind.name in _INTEGERS:
        return _integer(_INTEGERS[kind.name], number)
    if kind.name == "numeric":
        return _numeric(kind, number)
    if kind.name in _CONSTRUCTED:
        return _constructed(kind, number)
    if kind.name in _IN_TURN:
        variants = _IN_TURN[kind.name]
        return _written(variants[number % len(variants)], number)
    if kind.name in ("bit", "varbit"):
        width = kind.limit or (1 if kind.name == "bit" else 40)
        return f"{(number + 1) % 2**width:0{width}b}"
    if kind.name in _VECTORS:
        return str([number + 1, *[0.5] * ((kind.limit or 3) - 1)])
    if kind.name in _STEPS:
        return _step(kind, number)
    return None


def _written(form: str, n: int) -> str:
    return form.format(
        n=n, m=n + 1, a=n // 65536 % 256, b=n // 256 % 256, c=n % 256, digit=_DIGITS[n % 36], long="c3a4" * 40
    )


def guesses() -> tuple[str, ...]:
    """What may be worth trying where nothing is known about a type."""
    return ("1", "a", "{}", "(1,2)", "POINT(1 2)", "a=>1", "[1,2,3]", "1.0.0")


def of_length(number: int, length: int, filler: str = _FILLER) -> str:
    """Exactly so many characters, beginning with the number where there is room."""
    tag = ""
    while number or not tag:
        number, digit = divmod(number, 36)
        tag = _DIGITS[digit] + tag
    tag = tag[-length:] if length else ""
    rest = length - len(tag)
    return tag + (filler * (rest // len(filler) + 1))[:rest].rstrip(" ").ljust(rest, "~")


def _text(kind: Kind, number: int) -> str:
    limit = 30 if kind.name == "name" else kind.limit
    if number % 3 == 0:
        return of_length(number, limit or _LONG)
    return of_length(number, min(limit or 12, 12), " Größe~")


def _integer(bits: int, number: int) -> str:
    beyond = 2 ** (bits // 2) if bits > 16 else 256
    value = (beyond * 2 + number, number, -number)[number % 3]
    most = 2 ** (bits - 1) - 1
    return str(value if -most <= value <= most else number % most)


def _numeric(kind: Kind, number: int) -> str:
    if kind.limit is None:
        return (f"{number + 1}12345678901234567890.123456789", f"{number}.5", f"-{number}.000001")[number % 3]
    most = 10**kind.limit - 1
    unit = 10 ** max(kind.scale, 0)
    plain = number * unit + unit // 4
    unscaled = (
        (most - number) % (most + 1) if number % 3 == 0 else plain if plain <= most else number % (most + 1)
    )
    sign = "-" if number % 3 == 2 else ""
    with localcontext(prec=_MOST_DIGITS):
        return sign + format(Decimal(unscaled).scaleb(-kind.scale), "f")


_STEPS = (
    "int2",
    "int4",
    "int8",
    "numeric",
    "float4",
    "float8",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
)


def _step(kind: Kind, number: int) -> str | None:
    """Values that rise with the number, for ranges and for whatever has a calendar."""
    then = _EPOCH + timedelta(days=number, seconds=number)
    match kind.name:
        case "date":
            return then.date().isoformat()
        case "time":
            return (_EPOCH + timedelta(seconds=number)).time().isoformat()
        case "timetz":
            return (_EPOCH + timedelta(seconds=number)).time().isoformat() + "+05:30"
        case "timestamp":
            return then.replace(tzinfo=None).isoformat(" ")
        case "timestamptz":
            return then.isoformat(" ")
        case "numeric" if kind.limit is not None:
            return str(number % 10 ** max(kind.limit - max(kind.scale, 0), 0))
    return str(number) if kind.name in _STEPS else None


_CONSTRUCTED = ("enum", "array", "range", "multirange", "composite")


def _constructed(kind: Kind, number: int) -> str | None:
    if kind.name == "enum":
        # First and last, then the others: with few rows those two tell the most.
        order = [*kind.labels[:1], *kind.labels[:0:-1]]
        return order[number % len(order)] if order else None
    if kind.name == "composite":
        return (
            "("
            + ",".join("" if (text := made_up(part, number)) is None else _quote(text) for part in kind.parts)
            + ")"
        )
    part = kind.parts[0]
    if kind.name == "array":
        first, second = made_up(part, number), made_up(part, number + 1)
        if first is None or second is None:
            return None
        more: tuple[list[str | None], ...] = ([second], [], [None])
        return array_text([first, *more[number % 3]], kind.delimiter)
    spans = (2 * number,) if kind.name == "range" else (4 * number, 4 * number + 2)
    steps = [(_step(part, start), _step(part, start + 1)) for start in spans]
    if any(low is None for low, _ in steps):
        return "empty" if kind.name == "range" else "{}"
    texts = [f"[{_quote(low or '')},{_quote(high or '')})" for low, high in steps]
    return texts[0] if kind.name == "range" else "{" + ",".join(texts) + "}"


def array_text(elements: Iterable[str | None], delimiter: str = ",") -> str:
    """An array as PostgreSQL writes it."""
    return "{" + delimiter.join("NULL" if e is None else _quote(e) for e in elements) + "}"


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- Candidates from what a check says --------------------------------------------------------------------------------


class Literals(msgspec.Struct, frozen=True):
    """The constants of an expression, in order, each once."""

    texts: tuple[str, ...] = ()
    numbers: tuple[Decimal, ...] = ()


_TEXT_LITERAL = re.compile(r"'((?:[^']|'')*)'")
_NAME = re.compile(r'"(?:[^"]|"")*"')
_NUMBER_LITERAL = re.compile(r"(?<![\w.$])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])")


def literals_of(*expressions: str) -> Literals:
    """What these expressions compare with, as `pg_get_expr` writes them; a text that is a number counts as both."""
    texts: dict[str, None] = {}
    numbers: dict[Decimal, None] = {}
    for expression in expressions:
        for found in _TEXT_LITERAL.findall(expression):
            texts[found.replace("''", "'")] = None
        bare = _NAME.sub(" ", _TEXT_LITERAL.sub(" ", expression))
        for found in (*_NUMBER_LITERAL.findall(bare), *texts):
            try:
                value = Decimal(found)
            except InvalidOperation:
                continue
            if value.is_finite() and abs(value.adjusted()) < 200:
                numbers[value] = None
    return Literals(tuple(texts), tuple(numbers))


def candidates(kind: Kind, literals: Literals, count: int = 6) -> tuple[str, ...]:
    """Values to try where a check has a say, the likeliest first; each once."""
    made = [text for number in range(count) if (text := made_up(kind, number)) is not None]
    if kind.name in _INTEGERS or kind.name in ("numeric", "float4", "float8", "money"):
        hinted = _number_candidates(kind, literals, count)
    elif kind.name in _TEXTS or kind.name == "char":
        hinted = _text_candidates(kind, literals, count)
    elif kind.name in ("date", "timestamp", "timestamptz"):
        hinted = _date_candidates(kind, literals)
    elif kind.name in ("json", "jsonb"):
        keys = dict.fromkeys(literals.texts, "x")
        hinted = [
            json.dumps(v, ensure_ascii=False)
            for v in (keys, {}, [], [keys], "x", 1, True, dict.fromkeys(keys, 1))
        ]
    elif kind.name == "array":
        hinted = _array_candidates(kind, literals)
    elif kind.name in ("enum", "bool"):
        hinted = [text for number in range(2 * len(kind.labels)) if (text := made_up(kind, number))]
    else:
        hinted = list(literals.texts)
    return tuple(dict.fromkeys([*made[:1], *hinted, *made[1:]]))


def _number_candidates(kind: Kind, literals: Literals, count: int) -> list[str]:
    given = literals.numbers
    ordered = sorted(given)
    between = [(a + b) / 2 for a, b in itertools.pairwise(ordered)]
    around = [n + d for n in given for d in (1, -1)]
    part = Decimal(1).scaleb(-max(kind.scale, 0) if kind.limit is not None else -2)
    finer = [n + d for n in given for d in (part, -part)]
    further = [n + i for n in given for i in range(2, count)]
    bits = _INTEGERS.get(kind.name)
    if bits is not None:
        most = 1 << (bits - 1)
        small = [Decimal(n) for n in (0, 1)]
        whole = [int(n) for n in [*given, *around, *between, *small, *further, *(n * 10 for n in given)]]
        return [str(n) for n in whole if -most <= n < most]
    wanted = [*given, *around, *between, *finer, Decimal(0), Decimal(1), Decimal("0.5"), *further]
    if kind.name == "numeric" and kind.limit is not None:
        limit = Decimal(10) ** (kind.limit - kind.scale)
        with localcontext(prec=_MOST_DIGITS):
            step = Decimal(1).scaleb(-kind.scale)
            wanted = [v for n in wanted if abs(v := n.quantize(step)) < limit]
    return [format(n, "f") for n in wanted]


def _text_candidates(kind: Kind, literals: Literals, count: int) -> list[str]:
    numbers = range(count)
    found = list(literals.texts)
    for text in literals.texts:
        found += [m for n in numbers if (m := matching(text, n)) is not None]
        if "%" in text or "_" in text:
            found += [text.replace("%", f"a{n}").replace("_", "a") for n in numbers]
    lengths = [int(n) + d for n in literals.numbers if 0 <= n <= 2000 for d in (0, -1, 1)]
    for length in lengths:
        if length >= 0:
            found += [of_length(n, length, f) for n in numbers[:3] for f in (_FILLER, "x", "0")]
            found += [of_length(n, length, "A").upper() for n in numbers[:3]]
            found.append("".join(chr(65 + i % 26) for i in range(length)))
    for n in numbers:
        found += [f"abc{n}", f"user{n}@example.com", f"a-{n}"]
    found += ["abc", "ABC", "Abc", "a", "A", "0", "12345", "https://example.com/a", "+49301234567", ""]
    found += ["5eed0000-0000-4000-8000-000000000000", "2024-02-29", "127.0.0.1", "{}", "de", "DE", "EUR"]
    return [text for text in found if kind.limit is None or len(text) <= kind.limit]


def _date_candidates(kind: Kind, literals: Literals) -> list[str]:
    found: list[str] = []
    for text in literals.texts:
        try:
            then = datetime.fromisoformat(text.strip())
        except ValueError:
            continue
        for shift in (
            timedelta(),
            timedelta(days=1, hours=13, seconds=7),
            timedelta(days=-1),
            timedelta(days=40),
        ):
            try:
                moved = then + shift
            except OverflowError:
                continue
            found.append(date.isoformat(moved) if kind.name == "date" else moved.isoformat(" "))
    return found


def _array_candidates(kind: Kind, literals: Literals) -> list[str]:
    part = kind.parts[0]
    given = [*literals.texts] or [format(n, "f") for n in literals.numbers]
    some = [text for n in range(4) if (text := made_up(part, n)) is not None]
    found = [[text] for text in given] + [list(given)]
    lengths = [int(n) + d for n in literals.numbers if 0 <= n < 2000 for d in (0, -1, 1)]
    if some:
        found += [[some[i % len(some)] for i in range(min(length, 12))] for length in lengths if length > 0]
    return [*(array_text(elements, kind.delimiter) for elements in found), "{}"]


# --- Texts that a regular expression matches --------------------------------------------------------------------------

_CLASSES = {
    "d": "0123456789",
    "w": "abcxyz019_",
    "s": " ",
    "alpha": "abcxyz",
    "digit": "0123456789",
    "alnum": "abcxyz019",
    "upper": "ABCXYZ",
    "lower": "abcxyz",
    "space": " ",
    "punct": "-.!",
    "xdigit": "0123456789abcdef",
}
_ANY = "a0Z-_.! "
_BOUNDS = re.compile(r"\{(\d+)(,(\d*))?\}")
_NAMED_CLASS = re.compile(r"\[:(\w+):\]")


def matching(pattern: str, number: int) -> str | None:
    """A text that an ordinary regular expression matches, the number choosing among its branches.

    None if it isn't understood (look-around, back references). A best effort: the database has the last word.
    """
    try:
        text, end = _branches(pattern, 0, number)
    except (IndexError, KeyError, ValueError):
        return None
    return text if end == len(pattern) else None


def _branches(pattern: str, at: int, number: int) -> tuple[str, int]:
    found: list[str] = []
    while True:
        text, at = _sequence(pattern, at, number)
        found.append(text)
        if at >= len(pattern) or pattern[at] != "|":
            return found[number % len(found)], at
        at += 1


def _sequence(pattern: str, at: int, number: int) -> tuple[str, int]:
    text = ""
    while at < len(pattern) and pattern[at] not in "|)":
        if pattern[at] in "^$":
            at += 1
            continue
        choice, at = _atom(pattern, at, number)
        times, at = _repetition(pattern, at)
        text += "".join(choice[(number + i) % len(choice)] for i in range(times))
    return text, at


def _atom(pattern: str, at: int, number: int) -> tuple[tuple[str, ...], int]:
    """What may stand at that place."""
    match pattern[at]:
        case "(":
            if pattern.startswith("(?", at) and not pattern.startswith("(?:", at):
                raise ValueError("look-around")
            text, end = _branches(pattern, at + (3 if pattern.startswith("(?:", at) else 1), number)
            if pattern[end] != ")":
                raise ValueError("no end of the group")
            return (text,), end + 1
        case "[":
            return _bracket(pattern, at + 1)
        case "\\":
            escaped = pattern[at + 1]
            if escaped.isalnum():
                return tuple(_CLASSES[escaped]), at + 2
            return (escaped,), at + 2
        case ".":
            return tuple(_ANY), at + 1
    return (pattern[at],), at + 1


def _bracket(pattern: str, at: int) -> tuple[tuple[str, ...], int]:
    """A bracket expression, from behind its `[`."""
    negated = pattern[at] == "^"
    at += negated
    members = ""
    first = True
    while first or pattern[at] != "]":
        first = False
        if named := _NAMED_CLASS.match(pattern, at):
            members += _CLASSES[named[1]]
            at = named.end()
        elif pattern[at] == "\\":
            members += _CLASSES.get(pattern[at + 1], pattern[at + 1])
            at += 2
        elif pattern[at + 1] == "-" and pattern[at + 2] != "]":
            low, high = ord(pattern[at]), ord(pattern[at + 2])
            members += "".join(map(chr, range(low, min(high, low + 200) + 1)))
            at += 3
        else:
            members += pattern[at]
            at += 1
    choice = tuple(c for c in _ANY + "bcxyz19" if c not in members) if negated else tuple(members)
    if not choice:
        raise ValueError("nothing is left of the class")
    return choice, at + 1


def _repetition(pattern: str, at: int) -> tuple[int, int]:
    """How often, at the least but one, and where the pattern goes on."""
    times = 1
    if at < len(pattern) and pattern[at] in "*+?":
        times = 2 if pattern[at] == "+" else 1
        at += 1
    elif at < len(pattern) and (bounds := _BOUNDS.match(pattern, at)):
        most = bounds[3] or "" if bounds[2] else bounds[1]
        times = max(int(bounds[1]), min(1, int(most or 1)))
        at = bounds.end()
    if at < len(pattern) and pattern[at] == "?":
        at += 1  # the reluctant form
    return min(times, 1000), at
