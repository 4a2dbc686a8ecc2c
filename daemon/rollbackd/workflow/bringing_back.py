"""Archives and what was brought back of them, as people and machines are told."""

import msgspec

from rollbackd.core.archives import SCHEMA, ArchiveEntry
from rollbackd.core.restoring.reports import RestoreReport


def describe_archive(entry: ArchiveEntry) -> dict[str, object]:
    """One archive, without the definition of what it keeps."""
    return {
        "run": entry.run,
        "revision": entry.revision,
        "kind": str(entry.kind),
        "table": entry.table.text(),
        "column": entry.column,
        "rows": entry.rows,
        "place": f"{SCHEMA}.{entry.archive}",
        "made_at": entry.made_at.isoformat(),
        "restored_at": entry.restored_at.isoformat() if entry.restored_at else None,
    }


def describe_restore(report: RestoreReport) -> dict[str, object]:
    """What a restore did, or would do."""
    return {
        "run": report.run,
        "dry_run": report.dry_run,
        "restored": report.restored,
        "left": sum(entry.left for entry in report.entries),
        "missing": sum(entry.missing for entry in report.entries),
        "entries": [{**msgspec.to_builtins(entry), "text": entry.text()} for entry in report.entries],
        "statements": list(report.statements),
        "script": report.script,
    }
