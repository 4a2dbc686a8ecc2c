"""What a way back would cost today's rows: what is lost, and what would make it fail, counted on the database itself."""

from enum import StrEnum

import msgspec

from rollbackd.core.rehearsal import Rehearsal
from rollbackd.core.schema import TableName

OWNERSHIP = "ownership"


class RiskKind(StrEnum):
    """What happens to the rows that are counted."""

    DROPPED_TABLE = "dropped_table"
    DROPPED_COLUMN = "dropped_column"
    NARROWED = "narrowed"
    UPDATED = "updated"
    DELETED = "deleted"


class RowsAtRisk(msgspec.Struct, frozen=True, kw_only=True):
    """Rows or values that one revision's downgrade destroys or changes.

    `rows` is -1 where nobody could count, and `unknown` says why. With `at_most` it is an upper bound; an estimate is the
    planner's and isn't `exact`. `column` is empty where whole rows go; `sample` holds a few keys as text.
    """

    revision: str
    kind: RiskKind
    table: TableName
    column: str = ""
    rows: int = -1
    exact: bool = True
    at_most: bool = False
    sample: tuple[str, ...] = ()
    unknown: str = ""

    def text(self) -> str:
        """The risk in a few words, with its number."""
        place = f"{self.table.text()}.{self.column}" if self.column else self.table.text()
        words = {
            RiskKind.DROPPED_TABLE: ("row of {} goes", "rows of {} go"),
            RiskKind.DROPPED_COLUMN: ("value of {} goes", "values of {} go"),
            RiskKind.NARROWED: ("value of {} changes", "values of {} change"),
            RiskKind.UPDATED: ("row of {} is overwritten", "rows of {} are overwritten"),
            RiskKind.DELETED: ("row of {} is deleted", "rows of {} are deleted"),
        }[self.kind]
        if self.rows < 0:
            return f"an unknown number of {words[1].format(place)} ({self.unknown})"
        about = "at most " if self.at_most else "" if self.exact else "about "
        return f"{about}{self.rows:,} {words[0 if self.rows == 1 else 1].format(place)}"


class Obstacle(msgspec.Struct, frozen=True, kw_only=True):
    """Today's rows that a new rule of the old schema doesn't admit, so that the downgrade would fail.

    `rule` is not_null, unique, foreign_key, check, cast, enum_label, no_default (a column without a default that has to
    be filled in rows that are there), or ownership (`name` owns the table, and a copy in scratch has another owner). `certain` is False where the same way back writes the table first, and so may mend
    it. `rows` is -1 where nobody could count, and `unknown` says why.
    """

    revision: str
    rule: str
    name: str
    table: TableName
    columns: tuple[str, ...] = ()
    rows: int = -1
    sample: tuple[str, ...] = ()
    certain: bool = True
    unknown: str = ""

    def text(self) -> str:
        """The obstacle in a sentence."""
        place = f"{self.table.text()}({', '.join(self.columns)})" if self.columns else self.table.text()
        if self.rule == OWNERSHIP:
            return (
                f"{place} belongs to {self.name}, and the role that migrates may not alter it: must be owner"
            )
        if self.rows < 0:
            return f"{place}: whether {self.rule} {self.name} holds couldn't be counted ({self.unknown})"
        what = {
            "not_null": "hold NULL, which NOT NULL refuses",
            "unique": "repeat a value that has to be unique",
            "foreign_key": "point to nothing",
            "check": f"break the check {self.name}",
            "cast": "hold a value that the old type refuses",
            "enum_label": "use a label that the old type lacks",
            "no_default": "would need a value for a new NOT NULL column without a default",
        }.get(self.rule, f"break {self.rule} {self.name}")
        keys = f", such as {', '.join(self.sample)}" if self.sample else ""
        return f"{place}: {self.rows:,} rows {what}{keys}"


class Risks(msgspec.Struct, frozen=True, kw_only=True):
    """All that was counted for one way back, and how long that took."""

    at_risk: tuple[RowsAtRisk, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    seconds: float = 0.0

    def lost(self) -> tuple[RowsAtRisk, ...]:
        """What really loses something: counted as more than nothing, or not counted."""
        return tuple(risk for risk in self.at_risk if risk.rows != 0)

    def of(self, revision: str) -> "Risks":
        """The part that one revision brings about."""
        return Risks(
            at_risk=tuple(r for r in self.at_risk if r.revision == revision),
            obstacles=tuple(o for o in self.obstacles if o.revision == revision),
        )


def with_taken(risks: Risks, rehearsal: Rehearsal) -> Risks:
    """The risks with what a rehearsal with every row saw its statements do, in place of what could be counted before."""
    if rehearsal.taken is None:
        return risks
    rows_of = {(entry.revision, entry.table, entry.column): entry.rows for entry in rehearsal.taken}
    counted = {
        (r.revision, r.table, r.column) for r in risks.at_risk if r.kind is RiskKind.NARROWED and r.rows > 0
    }
    found = [risk for risk in risks.at_risk if risk.kind not in (RiskKind.UPDATED, RiskKind.DELETED)]
    for revision in rehearsal.revisions:
        for changed in revision.changed_columns:
            rows = rows_of.get((revision.id, changed.table, changed.column), 0)
            # Values that only look otherwise are no loss, which counting can tell; of a type that changed under its own
            # name it can tell nothing.
            if changed.today is None or not rows or changed.old_type != changed.new_type:
                continue
            if (revision.id, changed.today, changed.today_column) not in counted:
                found.append(
                    RowsAtRisk(
                        revision=revision.id,
                        kind=RiskKind.NARROWED,
                        table=changed.today,
                        column=changed.today_column,
                        rows=rows,
                    )
                )
        for written in revision.written:
            rows = rows_of.get((revision.id, written.table, ""), 0)
            if written.today is None or not rows:
                continue
            # TRUNCATE counts no row as deleted: what was neither deleted nor updated one by one was truncated.
            deleted = min(rows, written.deleted) if written.updated or written.deleted else rows
            found += [
                RowsAtRisk(revision=revision.id, kind=kind, table=written.today, rows=amount)
                for kind, amount in ((RiskKind.DELETED, deleted), (RiskKind.UPDATED, rows - deleted))
                if amount
            ]
    return msgspec.structs.replace(risks, at_risk=tuple(found))
