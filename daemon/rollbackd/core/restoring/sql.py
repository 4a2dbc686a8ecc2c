"""Pieces of SQL: values as text, rows as arrays of texts, literals; and the settings that a value's text depends on."""

from collections.abc import Iterable

from rollbackd.core.restoring.present import PresentColumn
from rollbackd.core.schema import quoted

# As they were when the archive was filled: a value's text depends on them.
TEXT_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "row_security": "off",
}
# The first version that can be asked whether a text is a value of a type; before it, asking is trying.
ASKS_TYPES = 160000


def text_of(value: str) -> str:
    """As the archive has it: the text that the type itself gives. A composite of NULLs isn't NULL."""
    return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN pg_catalog.concat({value}) END"


def literal(text: str) -> str:
    """A string constant, whatever `standard_conforming_strings` says."""
    if "\\" in text:
        return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    return "'" + text.replace("'", "''") + "'"


def array_of(values: Iterable[str]) -> str:
    """An array of texts."""
    return f"ARRAY[{', '.join(values)}]::text[]"


def identity_of(alias: str, names: Iterable[str]) -> str:
    """A row as an array of its values' texts, which compares as wholes and with NULLs alike."""
    return array_of(text_of(f"{alias}.{quoted(name)}") for name in names)


def field_of(document: str, name: str) -> str:
    """A column's value, as text, of a row that was kept as a document (jsonb)."""
    return f"({document} ->> {literal(name)})"


def equal(left: str, right: str, column: PresentColumn) -> str:
    """Whether two values of a column are equal, by its own operator where that is sure to be found."""
    return f"{text_of(left)} = {text_of(right)}" if column.as_text else f"{left} = {right}"


def round_trip(text: str, type_name: str, version: int) -> str:
    """Whether a type takes a text and gives it back as it was; NULL it always does."""
    again = text_of(f"({text})::{type_name}")
    return f"({text} IS NULL OR {if_valid(text, type_name, f'{again} = {text}', 'false', version)})"


def if_valid(text: str, type_name: str, then: str, otherwise: str, version: int) -> str:
    """One expression where the text is a value of the type, another where not.

    A server before `ASKS_TYPES` gets the first in any case: a text that is no value is an error there.
    """
    if version < ASKS_TYPES:
        return f"({then})"
    return f"CASE WHEN pg_input_is_valid({text}, {literal(type_name)}) THEN {then} ELSE {otherwise} END"
