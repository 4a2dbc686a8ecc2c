"""Is every migration reversible, and what does its way back cost? Told revision by revision, for CI and for the gate."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from rollbackd.core.rehearsal import RehearsedRevision
from rollbackd.core.schema import SchemaDifference, TableName


class Fault(StrEnum):
    """What can be wrong with a revision, worst first.

    `upgrade_fails`: it can't even be put on. `downgrade_fails`: it can't be taken off (over made-up rows). `stamp_lost`: it
    reports success and the version table says something else. `irreversible`: it says so, or does nothing where the
    upgrade does something. `reapply_fails`: after the downgrade it can't be put on again. `changes_rows`: rows that were
    there before the upgrade are changed or gone after the downgrade. `drifts`: the schema isn't the one that was there
    before. `loses_data`: what the new schema alone can hold goes; no fault of its own, and archived in earnest.
    """

    UPGRADE_FAILS = "upgrade_fails"
    DOWNGRADE_FAILS = "downgrade_fails"
    STAMP_LOST = "stamp_lost"
    IRREVERSIBLE = "irreversible"
    REAPPLY_FAILS = "reapply_fails"
    CHANGES_ROWS = "changes_rows"
    DRIFTS = "drifts"
    LOSES_DATA = "loses_data"


# What fails a check unless somebody says otherwise: losing what only the new schema can hold is in a downgrade's nature.
FAILING = tuple(fault for fault in Fault if fault is not Fault.LOSES_DATA)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of one revision, in a sentence, with what proves it."""

    fault: Fault
    text: str
    details: tuple[str, ...] = ()


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """One revision that went up, down and up again. `path` and `line` are where its downgrade() stands.

    `statements` are those that its downgrade executed, where it came off.
    """

    revision: str
    title: str = ""
    path: str = ""
    line: int = 1
    found: tuple[Found, ...] = ()
    seconds: float = 0.0
    rows: int = 0
    statements: tuple[str, ...] = ()

    def faults(self) -> frozenset[Fault]:
        """The kinds of faults that it has."""
        return frozenset(one.fault for one in self.found)


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """All revisions that were verified. `stopped` says why those after the last one weren't, empty where all were.

    `accepted` are faults that a baseline knows of: old sins, told and not counted.
    """

    verified: tuple[Verified, ...]
    stopped: str = ""
    seconds: float = 0.0
    accepted: dict[str, tuple[Fault, ...]] = {}
    failing: tuple[Fault, ...] = FAILING

    def failures(self) -> tuple[tuple[Verified, Found], ...]:
        """What fails the check: a fault that counts, and that the baseline doesn't know."""
        return tuple(
            (revision, found)
            for revision in self.verified
            for found in revision.found
            if found.fault in self.failing and found.fault not in self.accepted.get(revision.revision, ())
        )

    def passes(self) -> bool:
        """Whether nothing fails it, and nothing was left unverified."""
        return not self.failures() and not self.stopped


def drift(difference: SchemaDifference) -> Found | None:
    """The fault of a downgrade that doesn't return to the schema that was there."""
    if difference.is_empty():
        return None
    return Found(
        fault=Fault.DRIFTS,
        text=f"doesn't return to the schema that was there: {difference.summary()}",
        details=tuple(difference.lines()),
    )


def changed_rows(
    before: Mapping[TableName, tuple[str, ...]], after: Mapping[TableName, tuple[str, ...]]
) -> Found | None:
    """The fault of rows that were there before the upgrade and aren't, as they were, after the downgrade.

    Args:
        before: every row's text by table, before the upgrade.
        after: the same after the downgrade; rows made up in between may have come.
    """
    details: list[str] = []
    for table, rows in sorted(before.items()):
        left = list(after.get(table, ()))
        gone = 0
        for row in rows:
            if row in left:
                left.remove(row)
            else:
                gone += 1
        if gone:
            details.append(f"{table.text()}: {gone} of {len(rows)} rows are changed or gone")
    if not details:
        return None
    return Found(
        fault=Fault.CHANGES_ROWS,
        text=f"rows that were there before the upgrade don't come back: {'; '.join(details)}",
        details=tuple(details),
    )


def lost_data(revision: RehearsedRevision) -> Found | None:
    """What the downgrade takes away with what the upgrade brought."""
    things = [f"table {gone.table.text()}" for gone in revision.gone_tables]
    things += [f"column {c.table.text()}.{c.column}" for c in revision.gone_columns if not c.generated]
    things += [
        f"values of {c.table.text()}.{c.column} that {c.new_type} can't hold"
        for c in revision.changed_columns
        if not c.keeps_values
    ]
    if not things:
        return None
    return Found(fault=Fault.LOSES_DATA, text=f"takes away {', '.join(things)}", details=tuple(things))


def to_text(verification: Verification) -> str:
    """A line for each revision, what fails below it."""
    icons = {True: "✗", False: "✓"}
    lines: list[str] = []
    failing = {(revision.revision, found.fault) for revision, found in verification.failures()}
    for revision in verification.verified:
        fails = any((revision.revision, found.fault) in failing for found in revision.found)
        words = ", ".join(sorted(f.fault.replace("_", " ") for f in revision.found)) or "reversible"
        lines.append(f"{icons[fails]} {revision.revision}  {revision.title}: {words}")
        for found in revision.found:
            known = found.fault in verification.accepted.get(revision.revision, ())
            lines.append(f"    {found.text}{' (in the baseline)' if known else ''}")
            lines += [f"      {detail}" for detail in found.details[:12] if found.fault is Fault.DRIFTS]
    if verification.stopped:
        lines.append(f"✗ stopped: {verification.stopped}")
    count = len(verification.verified)
    failed = len({revision.revision for revision, _ in verification.failures()})
    lines.append(
        f"{count} revisions verified in {verification.seconds:.1f} s, {failed} with faults that count"
    )
    return "\n".join(lines)


def to_github(verification: Verification) -> str:
    """GitHub's workflow commands: annotations at the downgrade() of each revision."""
    lines = []
    failing = {(revision.revision, found.fault) for revision, found in verification.failures()}
    for revision in verification.verified:
        for found in revision.found:
            level = "error" if (revision.revision, found.fault) in failing else "notice"
            where = f"file={_property(revision.path)},line={revision.line}" if revision.path else ""
            title = f"title={_property(f'{revision.revision}: {found.fault}')}"
            lines.append(
                f"::{level} {','.join(part for part in (where, title) if part)}::{_data(found.text)}"
            )
    if verification.stopped:
        lines.append(f"::error title=verify-migrations stopped::{_data(verification.stopped)}")
    return "\n".join(lines)


def baseline_of(verified: Iterable[Verified]) -> dict[str, list[str]]:
    """The faults that there are now, as a baseline file holds them."""
    return {
        revision.revision: sorted(fault.value for fault in revision.faults() if fault in FAILING)
        for revision in verified
        if revision.faults() & set(FAILING)
    }


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
