"""What an event can't do without."""

from __future__ import annotations

import pytest

from rollbackd.core.events import Category, Event, EventKind, required_field_missing

K = EventKind


@pytest.mark.parametrize(
    ("kind", "fields", "missing"),
    [
        # A signal has a category and a name.
        (K.SIGNAL_FIRING, {}, "category"),
        (K.SIGNAL_RESOLVED, {"name": "Alert"}, "category"),
        (K.SIGNAL_FIRING, {"category": Category.BUG}, "name"),
        (K.SIGNAL_FIRING, {"category": Category.BUG, "name": "Alert"}, ""),
        # Somebody's word is somebody's, and on a run.
        (K.APPROVAL_GRANTED, {"actor": "ann"}, "run"),
        (K.APPROVAL_DENIED, {"run": "r"}, "actor"),
        (K.APPROVAL_GRANTED, {"run": "r", "actor": "ann"}, ""),
        # A deploy that begins has a version or the sender's id.
        (K.DEPLOY_STARTED, {}, "version"),
        (K.DEPLOY_STARTED, {"deployment": "4711"}, ""),
        (K.DEPLOY_STARTED, {"version": "2"}, ""),
        # Who wants a rollback says to what and why.
        (K.ROLLBACK_REQUESTED, {"reason": "errors"}, "to_revision"),
        (K.ROLLBACK_REQUESTED, {"to_revision": "a1"}, "reason"),
        (K.ROLLBACK_REQUESTED, {"to_revision": "a1", "reason": "errors"}, ""),
        # The others stand alone.
        *((k, {}, "") for k in (K.DEPLOY_SUCCEEDED, K.DEPLOY_FAILED, K.MIGRATION_FAILED, K.INCIDENT_OPENED)),
    ],
)
def test_the_field_that_is_missing_is_named(kind: EventKind, fields: dict[str, object], missing: str) -> None:
    assert required_field_missing(Event(kind=kind, service="shop", environment="prod", **fields)) == missing
