"""Facts: what assessment concludes from evidence.

Every fact is a finite enum, so that the decision matrix can be proved by enumerating all combinations.
"""

from enum import StrEnum
from itertools import product

import msgspec


class Migration(StrEnum):
    """Where the migration of a deployment stands, read from the database and the deploy's own word."""

    NOT_MOVED = "not_moved"
    RUNNING = "running"
    APPLIED = "applied"
    FAILED_CLEAN = "failed_clean"
    FAILED_MIDWAY = "failed_midway"
    FAILED_INSIDE = "failed_inside"
    UNKNOWN = "unknown"


class Errors(StrEnum):
    """Production errors that began after the deploy; `unknown` where nothing fires and a metric of errors can't tell."""

    NONE = "none"
    FIRING = "firing"
    UNKNOWN = "unknown"


class Performance(StrEnum):
    """Slowness that began after the deploy; `unknown` where nothing is slow and a metric of performance can't tell."""

    NORMAL = "normal"
    DEGRADED = "degraded"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


class Bug(StrEnum):
    """A bug in the migration that somebody reported and that breaks nothing."""

    NONE = "none"
    REPORTED = "reported"


class Data(StrEnum):
    """Whether somebody says that rows were lost, and what the migration itself has to do with it.

    `loss_confirmed`: the migration, run again on the backup from before it, takes rows or values away.
    `loss_not_by_migration`: it takes none away, so whatever is gone went otherwise.
    """

    INTACT = "intact"
    LOSS_REPORTED = "loss_reported"
    LOSS_CONFIRMED = "loss_confirmed"
    LOSS_NOT_BY_MIGRATION = "loss_not_by_migration"


class Application(StrEnum):
    """Whether the new release works, by our own probes and the deploy's own word."""

    HEALTHY = "healthy"
    FAILING = "failing"
    UNKNOWN = "unknown"


class Watch(StrEnum):
    """Whether the deployment is still in its bake time."""

    BAKING = "baking"
    OVER = "over"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One value of each fact: what a matrix row is matched against."""

    migration: Migration
    errors: Errors
    performance: Performance
    bug: Bug
    data: Data
    application: Application
    watch: Watch


FACT_VALUES: dict[str, tuple[str, ...]] = {
    "migration": tuple(Migration),
    "errors": tuple(Errors),
    "performance": tuple(Performance),
    "bug": tuple(Bug),
    "data": tuple(Data),
    "application": tuple(Application),
    "watch": tuple(Watch),
}


def every_combination() -> list[Facts]:
    """All combinations of facts there are (4,032 of them)."""
    return [
        msgspec.convert(dict(zip(FACT_VALUES, values, strict=True)), Facts)
        for values in product(*FACT_VALUES.values())
    ]
