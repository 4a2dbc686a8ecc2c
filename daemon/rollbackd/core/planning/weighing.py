"""Weighing: which of the allowed ways back fits, what speaks against the plan, and what it loses."""

from rollbackd.core.archives import ArchiveKind
from rollbackd.core.planning.inputs import Findings, Means
from rollbackd.core.planning.plan import PlannedRevision, WayBack
from rollbackd.core.reading import DESTROYS
from rollbackd.core.verdicts import OldRelease, Verdict


def choose_way(means: Means, old_release: OldRelease) -> tuple[WayBack | None, tuple[str, ...]]:
    """The first of the allowed ways that fits what was rehearsed (None: none does), and why those before it don't."""
    why: list[str] = []
    for way in means.ways:
        if way is WayBack.STOP_WRITES:
            return way, tuple(why)
        if not old_release.works:
            reasons = "; ".join(old_release.why[:3]) or "nobody knows"
            why.append(f"not {way}: the old release may not work on this schema ({reasons})")
        elif not means.starts_application:
            why.append(f"not {way}: no command is declared that puts the old release back")
        elif not means.tolerates_stamp:
            why.append(
                f"not {way}: the old release may not start over a stamp that it doesn't know; if it does, say so with"
                " 'deployment.tolerates_unknown_stamp'"
            )
        else:
            return way, (*why, "the old release works on the present schema, as rehearsed")
    return None, tuple(why)


def objections(
    revisions: tuple[PlannedRevision, ...],
    way: WayBack,
    means: Means,
    findings: Findings,
    release_from: str,
    release_to: str,
) -> tuple[list[str], list[str]]:
    """What speaks against it: blockers, which no approval lifts, and warnings."""
    blockers = _release_faults(way, means, release_to)
    warnings: list[str] = []
    if way is WayBack.LEAVE_SCHEMA:
        return blockers, warnings
    for revision in revisions:
        if revision.verdict is Verdict.IRREVERSIBLE:
            blockers += revision.why
        elif revision.verdict is Verdict.WILL_FAIL:
            blockers.append(f"{revision.id} will fail: {'; '.join(revision.why)}")
        elif revision.verdict is Verdict.UNKNOWN:
            warnings.append(f"{revision.id}: what it does isn't fully known: {'; '.join(revision.why)}")
    if way is WayBack.STOP_WRITES:
        if means.stops_application and not release_from:
            warnings.append(
                "nobody said which release runs now: if the run fails after the stop, a person has to start it again"
            )
        if not means.stops_application:
            warnings.append(
                "no command is declared that stops the application: whoever approves says that nothing writes"
            )
    warnings += [
        f"{r.id} can't share a transaction ({r.stands_alone}): if it fails midway, a person must settle it"
        for r in revisions
        if r.stands_alone
    ]
    unkeyed = sorted(
        {i.table.text() for i in findings.archive if not i.key and i.kind is not ArchiveKind.TABLE}
    )
    if unkeyed:
        warnings.append(
            f"{', '.join(unkeyed)}: no key by which a row is known again; what is archived is matched by all other values"
        )
    if findings.archive and findings.publications:
        warnings.append(
            f"{', '.join(findings.publications)} publishes every table, archives included: a subscriber without the schema"
            " rollbackd_archive stops at the first archived row; pause its subscription, or make the schema there"
        )
    return blockers, warnings


def _release_faults(way: WayBack, means: Means, release_to: str) -> list[str]:
    faults: list[str] = []
    if means.stops_application and not means.starts_application:
        faults.append(
            "a command stops the application and none starts it: declare 'deployment.start' as well"
        )
    if means.starts_application and not release_to:
        before = "which release ran before" if means.stops_application else "which release to start"
        faults.append(f"nobody said {before}: give previous_version with the deploy, or --release")
    return faults if way is not WayBack.LEAVE_SCHEMA or not release_to else []


def what_is_lost(revisions: tuple[PlannedRevision, ...], findings: Findings) -> list[str]:
    """What is lost, in words: as counted where it was rehearsed, else as read."""
    found: list[str] = []
    rehearsed = findings.rehearsal is not None and findings.rehearsal.passed
    for revision in revisions:
        if rehearsed:
            found += [risk.text() for risk in revision.at_risk if risk.rows != 0]
            if revision.verdict is Verdict.UNKNOWN:
                found += [f"unknown: {why}" for why in revision.why]
        else:
            found += [effect.text() for effect in revision.effects if effect.kind in DESTROYS]
            if revision.unread:
                found.append(f"unknown: {revision.id} can't be read without running it")
    return found
