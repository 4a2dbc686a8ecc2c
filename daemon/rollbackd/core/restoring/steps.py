"""The statements as data: what each does, what the number that it gives says, and the lock that several of them need."""

from enum import StrEnum

import msgspec

from rollbackd.core.archives import ArchiveEntry
from rollbackd.core.restoring.present import PresentTable


class Counts(StrEnum):
    """What the number that a statement gives says."""

    NOTHING = "nothing"
    RESTORED = "restored"
    LEFT = "left"
    MISSING = "missing"


class RestoreStep(msgspec.Struct, frozen=True, kw_only=True):
    """One statement. `says` tells a person what it does, `reason` why what it counts wasn't brought back.

    `repeatable` is False for a statement whose effect no rollback undoes; a dry run leaves it out.
    """

    entry: int
    says: str
    sql: str
    counts: Counts = Counts.NOTHING
    reason: str = ""
    repeatable: bool = True


class RestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The statements in their order, and the entries that can't be brought back now, each with its reason."""

    steps: tuple[RestoreStep, ...]
    left: dict[int, str]


def place_of(entry: ArchiveEntry) -> str:
    """The table, or the column, that an entry is about, for a person."""
    column = f".{entry.column}" if entry.column else ""
    return f"{entry.table.text()}{column}"


def lock_table(entry: ArchiveEntry, table: PresentTable) -> RestoreStep:
    """The statement that keeps others from writing the table until the transaction ends; they may still read it."""
    return RestoreStep(
        entry=entry.id,
        says=f"Without a key rows are told by counting them, and nobody may write {table.table.text()} meanwhile.",
        sql=f"LOCK TABLE {table.table.sql()} IN SHARE ROW EXCLUSIVE MODE",
    )
