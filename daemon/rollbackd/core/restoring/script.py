"""The plan as a script for psql: to be read first, changed where need be, and run by a person."""

from collections.abc import Iterable

from rollbackd.core.archives import ArchiveEntry
from rollbackd.core.restoring.planning import mark_restored
from rollbackd.core.restoring.sql import TEXT_SETTINGS, literal
from rollbackd.core.restoring.steps import RestorePlan, place_of


def restore_script(run: str, entries: Iterable[ArchiveEntry], plan: RestorePlan) -> str:
    """The plan as a script for psql: one transaction, and each statement with what it does."""
    entries = tuple(entries)
    lines = [
        f"-- Brings back what the run {_comment(run)} archived. Nothing newer is overwritten; it may be run again.",
        "BEGIN;",
        *(
            f"SET LOCAL {name} = {_setting(value)};"
            for name, value in TEXT_SETTINGS.items()
            if name != "search_path"
        ),
        # Everything here is named in full; the application's triggers look where they always do.
        "SELECT set_config('search_path', 'pg_catalog, ' || current_setting('search_path'), true);",
    ]
    if plan.left:
        lines += [
            "",
            "-- What is left can't be brought back as the database stands: see to the reasons (mostly, apply the fixed migration),"
            " and have",
            f"-- 'rollbackd report {_comment(run)}' write this script anew.",
        ]
    for entry in entries:
        if entry.id in plan.left:
            lines += ["", f"-- Left: {place_of(entry)} ({entry.kind}): {_comment(plan.left[entry.id])}"]
    for step in plan.steps:
        lines += ["", f"-- {_comment(step.says)}", f"{step.sql};"]
    marked = mark_restored(plan, entries)
    if marked:
        lines += ["", "-- Note that they were brought back.", f"{marked};"]
    return "\n".join([*lines, "", "COMMIT;", ""])


def _setting(value: str) -> str:
    return ", ".join(literal(part.strip()) for part in value.split(","))


def _comment(text: str) -> str:
    return " ".join(text.split())
