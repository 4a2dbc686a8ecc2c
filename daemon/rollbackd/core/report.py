"""The report of a run: what happened, what was proved, what is left to do. For people in Markdown, for machines in JSON."""

from datetime import datetime

import msgspec

from rollbackd.core.checks import Finding
from rollbackd.core.investigation import (
    Investigation,
    series_text,
    statement_text,
    transaction_text,
    waiting_text,
)
from rollbackd.core.records import TableCount
from rollbackd.core.timeline import Timeline
from rollbackd.core.wording import moment, size


class ReportStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step as it went."""

    number: int
    text: str
    kind: str
    outcome: str
    began_at: datetime | None
    ended_at: datetime | None
    attempts: int
    note: str = ""

    @property
    def seconds(self) -> float | None:
        """How long it took, None where it didn't end."""
        if self.began_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.began_at).total_seconds()


class ReportRevision(msgspec.Struct, frozen=True, kw_only=True):
    """One revision that was taken off."""

    id: str
    title: str
    effects: tuple[str, ...]
    statements: tuple[str, ...]
    unread: str = ""
    verdict: str = ""
    why: tuple[str, ...] = ()


class ReportBackup(msgspec.Struct, frozen=True, kw_only=True):
    """One backup of the run and the commands that bring its data back."""

    id: str
    purpose: str
    location: str
    level: int
    size_bytes: int
    rows: int
    commands: tuple[str, ...]


class ReportRehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """The rehearsal that the plan was made of."""

    depth: str
    passed: bool
    text: str
    difference: tuple[str, ...]


class ReportArchive(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was kept before it went; `restored_at` when it was last brought back."""

    kind: str
    table: str
    column: str
    place: str
    rows: int
    revision: str
    restored_at: datetime | None = None


class NextStep(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do, done or left."""

    text: str
    done: bool


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a report says. Times are UTC. `investigations` are the deployment's, the oldest first."""

    run: str
    target: str
    service: str
    environment: str
    status: str
    statement: str
    written_at: datetime
    date: datetime
    reason: str
    executed_by: str
    approved_by: tuple[str, ...]
    writes_stopped_by: str
    incident: str
    method: str
    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]
    release_from: str
    release_to: str
    revisions: tuple[ReportRevision, ...]
    counts_before: tuple[TableCount, ...]
    counts_after: tuple[TableCount, ...]
    backups: tuple[ReportBackup, ...]
    steps: tuple[ReportStep, ...]
    log: tuple[str, ...]
    findings: tuple[Finding, ...]
    loses: tuple[str, ...]
    rehearsal: ReportRehearsal
    archives: tuple[ReportArchive, ...]
    archives_unreadable: str
    restore_script: str
    price: str
    decision: dict[str, str]
    next_steps: tuple[NextStep, ...]
    timeline: Timeline = Timeline()
    investigations: tuple[Investigation, ...] = ()


_HOLD_WORDS = {
    "succeeded": "Settled by a person; the database is whole again",
    "held": "HELD: a person is needed",
    "abandoned": "Abandoned to a person",
    "running": "Being looked at",
}


def verdict_line(report: Report) -> str:
    """The whole report in one line."""
    way = f"{' + '.join(report.from_heads) or 'base'} → {' + '.join(report.to_heads) or 'base'}"
    if report.method == "hold":
        return f"{_HOLD_WORDS.get(report.status, report.status)}: {report.target}, between {way}"
    if report.method == "redeploy_only":
        way = f"release {report.release_from or '?'} → {report.release_to or '?'}, database untouched"
    words = {
        "succeeded": "Rolled back and validated",
        "failed": "Not rolled back; the database is unchanged",
        "held": "HELD: a person is needed",
        "awaiting_approval": "Waits for approval",
        "running": "Under way",
        "denied": "Denied; nothing was done",
        "expired": "Expired; nothing was done",
        "abandoned": "Abandoned to a person",
        "planned": "Planned",
    }
    return f"{words.get(report.status, report.status)}: {report.target}, {way}"


def to_markdown(report: Report) -> str:
    """The report as Markdown. Whatever came from outside is escaped or fenced."""
    lines = [f"# Rollback report {report.run}", "", f"**{_inline(verdict_line(report))}**", ""]
    if report.statement:
        lines += [f"> {_inline(report.statement)}", ""]
    lines += _facts(report)
    for investigation in report.investigations[-1:]:
        lines += _investigation(investigation)
    lines += _state_before(report)
    lines += _rehearsal(report)
    lines += _steps(report)
    lines += _checks(report)
    lines += _preservation(report)
    lines += _statements(report)
    lines += ["## Next steps", ""]
    lines += [f"- [{'x' if step.done else ' '}] {_inline(step.text)}" for step in report.next_steps]
    lines += ["", f"*Written {moment(report.written_at)} by rollbackd.*", ""]
    return "\n".join(lines)


def _facts(report: Report) -> list[str]:
    rows = [
        ("Date", moment(report.date)),
        ("Target", f"{report.target} ({report.service}, {report.environment})"),
        ("Reason", report.reason),
        ("Executed by", report.executed_by),
        ("Approved by", ", ".join(report.approved_by) or _unapproved(report)),
        ("Writes stopped by", report.writes_stopped_by or "the plan's own step"),
        ("Incident", report.incident or "none"),
        ("From", _heads(report.from_heads, report)),
        ("To", _heads(report.to_heads, report)),
        ("Release", f"{report.release_from or 'not said'} → {report.release_to or 'not said'}"),
        ("Method", report.method),
        *([("Price, as last known", report.price)] if report.price else []),
        ("Status", report.status),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows), ""]
    if report.decision:
        lines += [
            "## Why",
            "",
            f"Row **{_inline(report.decision.get('row', ''))}**: {_inline(report.decision.get('why', ''))}",
            "",
        ]
        lines += [
            f"- {_inline(name)}: {_inline(text)}"
            for name, text in report.decision.items()
            if name not in ("row", "why")
        ]
        lines.append("")
    return lines


def _investigation(found: Investigation) -> list[str]:
    """The newest picture of what was slow; all of them are in the JSON."""
    change, activity = found.change, found.activity
    lines = [
        "## Investigation",
        "",
        f"Collected {moment(found.at)} for {_code(found.decision)}; ┃ is the start of the deploy, {found.deployed_at:%H:%M:%S}.",
        "",
    ]
    if found.series:
        lines += [*_fenced("\n".join(series_text(s, found.deployed_at) for s in found.series)), ""]
    if change.revisions:
        lines.append(f"- Revisions that were put on: {_inline(', '.join(change.revisions))}")
    if change.tables():
        lines.append(f"- Tables that the migration touched: {_inline(', '.join(change.tables()))}")
    lines += [f"- Waits for a lock: {_inline(waiting_text(session))}" for session in activity.waiting]
    lines += [f"- Long transaction: {_inline(transaction_text(one))}" for one in activity.transactions]
    lines += [f"- Not seen: {_inline(text)}" for text in (*activity.missing, *change.missing)]
    if activity.statements:
        texts = "\n".join(statement_text(statement) for statement in activity.statements)
        lines += ["", f"Slowest statements, by {_code(activity.source)}:", "", *_fenced(texts)]
    return [*lines, ""]


def _unapproved(report: Report) -> str:
    if report.status in ("awaiting_approval", "denied", "expired"):
        return "nobody"
    return "no approval was needed"


def _state_before(report: Report) -> list[str]:
    lines = ["## State before", ""]
    if report.revisions:
        lines += ["| Revision taken off | Title | Verdict | Why |", "|---|---|---|---|"]
        for revision in report.revisions:
            why = "; ".join(revision.why or revision.effects) or "nothing is lost"
            lines.append(
                f"| {_code(revision.id)} | {_cell(revision.title)} | {revision.verdict} | {_cell(why)} |"
            )
        lines.append("")
    if report.counts_before:
        after = {count.table: count for count in report.counts_after}
        lines += ["| Table | Rows before | Rows after |", "|---|---:|---:|"]
        for count in report.counts_before:
            now = after.get(count.table)
            gone = "gone" if report.counts_after else "not counted"
            lines.append(f"| {_cell(count.table)} | {_rows(count)} | {_rows(now) if now else gone} |")
        lines.append("")
    for backup in report.backups:
        lines.append(
            f"- Backup {_code(backup.id)} ({backup.purpose}): {size(backup.size_bytes)}, proved to **L{backup.level}**,"
            f" {backup.rows:,} rows counted, at {_code(backup.location)}"
        )
    if not report.backups:
        lines.append("- No backup was taken in this run.")
    return [*lines, ""]


def _steps(report: Report) -> list[str]:
    lines = ["## Execution", "", "| # | Step | Outcome | Began | Took |", "|---:|---|---|---|---:|"]
    for step in report.steps:
        took = f"{step.seconds:.2f} s" if step.seconds is not None else ""
        began = f"{step.began_at:%H:%M:%S}" if step.began_at else ""
        tries = f" ({step.attempts} attempts)" if step.attempts > 1 else ""
        lines.append(
            f"| {step.number + 1} | {_cell(step.text)} | {_cell(step.outcome + tries)} | {began} | {took} |"
        )
    lines.append("")
    lines += [f"- Step {step.number + 1}: {_inline(step.note)}" for step in report.steps if step.note]
    return [*lines, ""]


def _checks(report: Report) -> list[str]:
    if not report.findings:
        return []
    lines = ["## Checks", "", "| Check | Outcome | Found |", "|---|---|---|"]
    lines += [f"| {_cell(f.check)} | {f.outcome} | {_cell(f.text)} |" for f in report.findings]
    lines.append("")
    for finding in report.findings:
        if finding.details:
            lines += [f"{_inline(finding.check)}:", "", *_fenced("\n".join(finding.details)), ""]
    return lines


def _rehearsal(report: Report) -> list[str]:
    rehearsal = report.rehearsal
    if report.method in ("hold", "redeploy_only"):
        return []
    lines = ["## Rehearsal", "", _inline(rehearsal.text), ""]
    if rehearsal.difference:
        lines += [
            "What it changed, as the catalog of the copy showed:",
            "",
            *_fenced("\n".join(rehearsal.difference), "diff"),
            "",
        ]
    return lines


def _preservation(report: Report) -> list[str]:
    lines = ["## Data preservation", ""]
    if report.loses:
        lines += ["The downgrade takes away:", "", *(f"- {_inline(text)}" for text in report.loses), ""]
    else:
        lines += ["The downgrade destroys no rows or values that are known of.", ""]
    if report.archives_unreadable:
        lines += [f"What is archived couldn't be read: {_inline(report.archives_unreadable)}", ""]
    if report.archives:
        lines += ["| Kept | Of | Rows | In | Brought back |", "|---|---|---:|---|---|"]
        for archive in report.archives:
            place = f"{archive.table}.{archive.column}" if archive.column else archive.table
            back = f"{archive.restored_at:%F %T} UTC" if archive.restored_at else "not yet"
            lines.append(
                f"| {archive.kind} | {_cell(place)} | {archive.rows:,} | {_code(archive.place)} | {back} |"
            )
        lines += [
            "",
            "Once the fixed migration is in, this brings it back, overwrites nothing newer, and may be repeated:",
            "",
            *_fenced(f"rollbackd restore {report.run} --dry-run\nrollbackd restore {report.run}", "sh"),
            "",
        ]
    if report.restore_script:
        lines += ["The same as plain SQL, for `psql -f`:", "", *_fenced(report.restore_script, "sql"), ""]
    for backup in report.backups:
        what = "the whole database"
        if backup.purpose == "gate":
            what = "what the upgrade itself had destroyed (this backup is from before it)"
        lines += [
            f"To bring back {_inline(what)} from `{backup.id}`, into a database beside the guarded one:",
            "",
        ]
        lines += [*_fenced("\n".join(backup.commands), "sh"), ""]
    return lines


def _statements(report: Report) -> list[str]:
    lines: list[str] = []
    planned: list[str] = []
    for revision in report.revisions:
        planned.append(f"-- downgrade {revision.id}")
        if revision.unread:
            planned.append(f"-- can't be read without running it: {' '.join(revision.unread.split())}")
        planned += [f"{statement};" for statement in revision.statements]
    if report.log:
        lines += ["## Statements that ran", "", *_fenced("\n".join(report.log), "sql"), ""]
    elif planned:
        lines += ["## Statements of the downgrade", "", *_fenced("\n".join(planned), "sql"), ""]
    return lines


def _heads(heads: tuple[str, ...], report: Report) -> str:
    titles = {revision.id: revision.title for revision in report.revisions}
    return " + ".join(f"{head} ({titles[head]})" if titles.get(head) else head for head in heads) or "base"


def _rows(count: TableCount) -> str:
    return f"{count.rows:,}" if count.exact else f"about {count.rows:,} (estimate)"


def _inline(text: str) -> str:
    """Text on one line that can't become markup."""
    line = " ".join(str(text).split())
    for character in "\\`*_[]<>|":
        line = line.replace(character, f"&#{ord(character)};" if character in "<>|" else f"\\{character}")
    return line


def _cell(text: str) -> str:
    return _inline(text)


def _code(text: str) -> str:
    """Text as code in a table cell; a backtick or a bar would end it."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "¦") + "`"


def _fenced(text: str, language: str = "") -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence + language, text, fence]
