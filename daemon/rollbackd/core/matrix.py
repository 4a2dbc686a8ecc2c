"""The decision matrix: an ordered table, first row that matches (DMN hit policy FIRST), proved when it is loaded."""

from enum import StrEnum
from typing import Any

import msgspec

from rollbackd.core.facts import FACT_VALUES, Facts, Migration, every_combination
from rollbackd.errors import ConfigurationError


class Action(StrEnum):
    """What a decision can ask for."""

    KEEP = "keep"
    INVESTIGATE = "investigate"
    ROLL_BACK = "roll_back"
    ROLL_BACK_AND_RESTORE = "roll_back_and_restore"
    ROLL_BACK_WITH_DEPLOYMENT = "roll_back_with_deployment"
    REDEPLOY_ONLY = "redeploy_only"
    FIX_FORWARD = "fix_forward"


DOWNGRADING = frozenset({Action.ROLL_BACK, Action.ROLL_BACK_AND_RESTORE, Action.ROLL_BACK_WITH_DEPLOYMENT})
MOVED_AND_KNOWN = frozenset({Migration.APPLIED, Migration.FAILED_MIDWAY})


Condition = dict[str, str | list[str]]


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row. A fact that `when` doesn't name matches whatever its value; a list in `when` is alternatives.

    `at_once` skips waiting for more evidence and no gate; `hold` opens a run that is held for a person.
    """

    name: str
    action: Action
    why: str
    when: Condition | list[Condition] = {}
    at_once: bool = False
    hold: bool = False
    next_steps: tuple[str, ...] = ()

    def matches(self, facts: Facts) -> bool:
        """Whether every fact that this row names has one of the values it names."""
        return any(_holds(condition, facts) for condition in self.alternatives())

    def alternatives(self) -> list[Condition]:
        """The conditions of which one is enough."""
        return self.when if isinstance(self.when, list) else [self.when]


class Matrix(msgspec.Struct, frozen=True):
    """Rows that were proved: every combination of facts meets exactly one first row, and each row meets some."""

    rows: tuple[Row, ...]

    def first_match(self, facts: Facts) -> Row:
        """The row that decides; a proved matrix always has one."""
        return next(row for row in self.rows if row.matches(facts))


def load_matrix(document: dict[str, Any], source: str) -> Matrix:
    """Build and prove a matrix out of its parsed TOML.

    Raises:
        ConfigurationError: with every fault: unknown facts or values, gaps, rows that can never match, rows that would
            downgrade where no revision moved or where nobody knows the revision.
    """
    problems = [
        f"{source}: unknown key {key!r}; a matrix holds [[row]] tables only"
        for key in document
        if key != "row"
    ]
    tables = document.get("row", [])
    if not isinstance(tables, list):
        raise ConfigurationError(
            [*problems, f"{source}: write [[row]] with two brackets: the rows are a list"]
        )
    rows: tuple[Row, ...] = ()
    for number, table in enumerate(tables, start=1):
        try:
            row = msgspec.convert(table, Row)
        except msgspec.ValidationError as error:
            problems.append(f"{source}: row {number}: {error}")
        else:
            problems += _faults(row, source)
            rows += (row,)
    names = [row.name for row in rows]
    problems += [
        f"{source}: {names.count(name)} rows are named {name!r}; a decision names its row, so give each its own name"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if not problems:
        problems = prove(rows, source)
    if problems:
        raise ConfigurationError(problems)
    return Matrix(rows=rows)


def prove(rows: tuple[Row, ...], source: str) -> list[str]:
    """Enumerate every combination of facts; return each gap and each fault found, in words."""
    problems: list[str] = []
    # Each alternative of a row has to decide something: one that can't is a mistake as much as a whole row.
    first_for = {(row.name, index): 0 for row in rows for index in range(len(row.alternatives()))}
    gaps: list[Facts] = []
    unsafe: dict[str, Facts] = {}
    for facts in every_combination():
        row = next((r for r in rows if r.matches(facts)), None)
        if row is None:
            gaps.append(facts)
            continue
        for index, condition in enumerate(row.alternatives()):
            first_for[row.name, index] += _holds(condition, facts)
        if row.action in DOWNGRADING and facts.migration not in MOVED_AND_KNOWN:
            unsafe.setdefault(row.name, facts)
    if gaps:
        example = ", ".join(f"{k}={v}" for k, v in msgspec.to_builtins(gaps[0]).items())
        problems.append(
            f"{source}: {len(gaps)} combinations of facts match no row, such as {example}; add a last row"
        )
    problems += [
        f"{source}: row {name!r}{f', alternative {index + 1},' if several else ''} can never match, as earlier rows take"
        " everything it names; move it up or delete it"
        for name, index, several in _never_first(rows, first_for)
    ]
    problems += [
        f"{source}: row {name!r} would downgrade with migration={facts.migration}; only a revision that moved and is"
        " known may be downgraded: name migration = applied or failed_midway in its 'when'"
        for name, facts in unsafe.items()
    ]
    return problems


def _never_first(rows: tuple[Row, ...], first_for: dict[tuple[str, int], int]) -> list[tuple[str, int, bool]]:
    """Rows, or alternatives of rows, that decide nothing: name, index, and whether the rest of its row does decide."""
    found: list[tuple[str, int, bool]] = []
    for row in rows:
        never = [i for i in range(len(row.alternatives())) if first_for[row.name, i] == 0]
        if len(never) == len(row.alternatives()):
            found.append((row.name, 0, False))
        else:
            found += [(row.name, index, True) for index in never]
    return found


def _holds(condition: Condition, facts: Facts) -> bool:
    """Whether every fact that the condition names has one of the values it names."""
    return all(
        getattr(facts, fact) in ([wanted] if isinstance(wanted, str) else wanted)
        for fact, wanted in condition.items()
    )


def _faults(row: Row, source: str) -> list[str]:
    problems: list[str] = []
    named = [item for condition in row.alternatives() for item in condition.items()]
    for fact, wanted in named:
        if fact not in FACT_VALUES:
            problems.append(
                f"{source}: row {row.name!r}: no fact {fact!r}; the facts are {', '.join(FACT_VALUES)}"
            )
            continue
        values = [wanted] if isinstance(wanted, str) else wanted
        problems += [
            f"{source}: row {row.name!r}: {fact} is never {value!r}; it is one of {', '.join(FACT_VALUES[fact])}"
            for value in values
            if value not in FACT_VALUES[fact]
        ]
    if row.hold and row.action is not Action.INVESTIGATE:
        problems.append(f'{source}: row {row.name!r}: hold goes with action = "investigate" alone')
    if row.action is Action.ROLL_BACK_AND_RESTORE and any(
        condition.get("data") != "loss_confirmed" for condition in row.alternatives()
    ):
        problems.append(
            f"{source}: row {row.name!r}: roll_back_and_restore brings back what the migration took away, so it goes with"
            ' data = "loss_confirmed" alone'
        )
    return problems
