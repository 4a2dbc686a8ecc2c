"""What a delivery means, in our own words, whoever sent it."""

from datetime import datetime
from enum import StrEnum

import msgspec


class EventKind(StrEnum):
    """The closed list of things that can happen to us from outside."""

    DEPLOY_STARTED = "deploy.started"
    DEPLOY_SUCCEEDED = "deploy.succeeded"
    DEPLOY_FAILED = "deploy.failed"
    MIGRATION_STARTED = "migration.started"
    MIGRATION_APPLIED = "migration.applied"
    MIGRATION_FAILED = "migration.failed"
    SIGNAL_FIRING = "signal.firing"
    SIGNAL_RESOLVED = "signal.resolved"
    INCIDENT_OPENED = "incident.opened"
    INCIDENT_CLOSED = "incident.closed"
    APPROVAL_GRANTED = "approval.granted"
    APPROVAL_DENIED = "approval.denied"
    ROLLBACK_REQUESTED = "rollback.requested"


class EventResult(StrEnum):
    """What came of an event once it was acted on.

    `refused`: as things stand, with the reason on record. `unguarded`: no target has this service and environment.
    """

    TAKEN = "taken"
    REFUSED = "refused"
    UNGUARDED = "unguarded"
    FAULTED = "faulted"


class Category(StrEnum):
    """What a signal is about."""

    ERRORS = "errors"
    PERFORMANCE = "performance"
    DATA_LOSS = "data_loss"
    BUG = "bug"
    AVAILABILITY = "availability"


class Severity(StrEnum):
    """How bad the sender says it is, mildest first."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One normalised event. Times are aware; empty strings mean "not said".

    `deployment` is the sender's own id for the deploy, `name` and `key` name a signal and tell its instances apart,
    `run` and `actor` belong to approvals. `committed_at` is when the oldest change of a release was committed.
    """

    kind: EventKind
    service: str
    environment: str
    version: str = ""
    previous_version: str = ""
    deployment: str = ""
    occurred_at: datetime | None = None
    from_revision: str = ""
    to_revision: str = ""
    reason: str = ""
    url: str = ""
    labels: dict[str, str] = {}
    category: Category | None = None
    severity: Severity | None = None
    name: str = ""
    key: str = ""
    run: str = ""
    actor: str = ""
    committed_at: datetime | None = None


def required_field_missing(event: Event) -> str:
    """Name the field that this kind of event can't do without and lacks; empty when nothing is missing."""
    if event.kind in (EventKind.SIGNAL_FIRING, EventKind.SIGNAL_RESOLVED):
        if event.category is None:
            return "category"
        if not event.name:
            return "name"
    if event.kind in (EventKind.APPROVAL_GRANTED, EventKind.APPROVAL_DENIED):
        if not event.run:
            return "run"
        if not event.actor:
            return "actor"
    if event.kind is EventKind.DEPLOY_STARTED and not (event.version or event.deployment):
        return "version"
    if event.kind is EventKind.ROLLBACK_REQUESTED:
        if not event.to_revision:
            return "to_revision"
        if not event.reason:
            return "reason"
    return ""
