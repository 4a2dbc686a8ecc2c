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


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row. A fact that `when` doesn't name matches whatever its value.

    `at_once` skips waiting for more evidence and no gate; `hold` opens a run that is held for a person.
    """

    name: str
    action: Action
    why: str
    when: dict[str, str | list[str]] = {}
    at_once: bool = False
    hold: bool = False
    next_steps: tuple[str, ...] = ()

    def matches(self, facts: Facts) -> bool:
        """Whether every fact that this row names has one of the values it names."""
        for fact, wanted in self.when.items():
            allowed = [wanted] if isinstance(wanted, str) else wanted
            if getattr(facts, fact) not in allowed:
                return False
        return True


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
    try:
        rows = msgspec.convert(document.get("row", []), tuple[Row, ...])
    except msgspec.ValidationError as error:
        raise ConfigurationError([f"{source}: {error}"]) from None
    problems = [f"{source}: unknown key {key!r}; a matrix holds [[row]] tables only" for key in document if key != "row"]
    problems += [problem for row in rows for problem in _faults(row, source)]
    if not problems:
        problems = prove(rows, source)
    if problems:
        raise ConfigurationError(problems)
    return Matrix(rows=rows)


def prove(rows: tuple[Row, ...], source: str) -> list[str]:
    """Enumerate every combination of facts; return each gap and each fault found, in words."""
    problems: list[str] = []
    first_for: dict[str, int] = {row.name: 0 for row in rows}
    if len(first_for) != len(rows):
        problems.append(f"{source}: two rows have the same name")
    gaps: list[Facts] = []
    unsafe: dict[str, Facts] = {}
    for facts in every_combination():
        row = next((r for r in rows if r.matches(facts)), None)
        if row is None:
            gaps.append(facts)
            continue
        first_for[row.name] += 1
        if row.action in DOWNGRADING and facts.migration not in MOVED_AND_KNOWN:
            unsafe.setdefault(row.name, facts)
    if gaps:
        example = ", ".join(f"{k}={v}" for k, v in msgspec.to_builtins(gaps[0]).items())
        problems.append(f"{source}: {len(gaps)} combinations of facts match no row, such as {example}; add a last row")
    problems += [
        f"{source}: row {name!r} can never match, as earlier rows take everything it names; move it up or delete it"
        for name, count in first_for.items()
        if count == 0
    ]
    problems += [
        f"{source}: row {name!r} would downgrade with migration={facts.migration}; only a revision that moved and is"
        " known may be downgraded: name migration = applied or failed_midway in its 'when'"
        for name, facts in unsafe.items()
    ]
    return problems


def _faults(row: Row, source: str) -> list[str]:
    problems: list[str] = []
    for fact, wanted in row.when.items():
        if fact not in FACT_VALUES:
            problems.append(f"{source}: row {row.name!r}: no fact {fact!r}; the facts are {', '.join(FACT_VALUES)}")
            continue
        values = [wanted] if isinstance(wanted, str) else wanted
        problems += [
            f"{source}: row {row.name!r}: {fact} is never {value!r}; it is one of {', '.join(FACT_VALUES[fact])}"
            for value in values
            if value not in FACT_VALUES[fact]
        ]
    if row.hold and row.action is not Action.INVESTIGATE:
        problems.append(f"{source}: row {row.name!r}: hold goes with action = \"investigate\" alone")
    if row.action is Action.ROLL_BACK_AND_RESTORE:
        problems.append(
            f"{source}: row {row.name!r}: roll_back_and_restore needs archives that can be restored, which this version"
            " doesn't make; use roll_back or investigate"
        )
    return problems
