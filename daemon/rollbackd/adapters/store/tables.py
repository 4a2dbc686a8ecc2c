"""The tables. Values that are looked up have columns; the whole record lies beside them as JSON.

What happened (delivery, event, journal, log, transition) is only ever added to; what is (deployment, run) is replaced.
"""

from sqlalchemy import (
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

meta = Table(
    "meta", metadata, Column("name", String, primary_key=True), Column("value", String, nullable=False)
)

delivery = Table(
    "delivery",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("hook", String, nullable=False),
    Column("identity", String, nullable=False),
    Column("body_sha256", String, nullable=False),
    Column("headers", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("received_at", Float, nullable=False, index=True),
    Column("ignored_because", String, nullable=False),
    UniqueConstraint("hook", "identity"),
)

event = Table(
    "event",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("delivery", String, nullable=False, index=True),
    Column("hook", String, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("settled_at", Float),
    Column("outcome", String),
)
# Only what still waits is in it, so that it stays small however much happened.
Index("ix_event_waiting", event.c.seq, sqlite_where=event.c.settled_at.is_(None))

deployment = Table(
    "deployment",
    metadata,
    Column("id", String, primary_key=True),
    Column("target", String, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("body", LargeBinary, nullable=False),
)
Index("ix_deployment_started", deployment.c.started_at)
Index("ix_deployment_target_started", deployment.c.target, deployment.c.started_at)
Index("ix_deployment_watched", deployment.c.id, sqlite_where=deployment.c.ended_at.is_(None))

signal = Table(
    "signal",
    metadata,
    Column("service", String, primary_key=True),
    Column("environment", String, primary_key=True),
    Column("source", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("resolved_at", Float),
    Column("body", LargeBinary, nullable=False),
)
Index(
    "ix_signal_name_firing", signal.c.environment, signal.c.name, sqlite_where=signal.c.resolved_at.is_(None)
)

measurement = Table(
    "measurement",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("deployment", String, nullable=False),
    Column("at", Float, nullable=False, index=True),
    Column("body", LargeBinary, nullable=False),
)
Index("ix_measurement_deployment", measurement.c.deployment, measurement.c.seq)

document = Table(
    "document",
    metadata,
    Column("id", String, primary_key=True),
    Column("target", String, nullable=False),
    Column("taken_at", Float, nullable=False),
    Column("rehearsed", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
Index("ix_document_target_taken", document.c.target, document.c.taken_at)

decision = Table(
    "decision",
    metadata,
    Column("id", String, primary_key=True),
    Column("target", String, nullable=False),
    Column("deployment", String, nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
Index("ix_decision_at", decision.c.at)
Index("ix_decision_target_at", decision.c.target, decision.c.at)

investigation = Table(
    "investigation",
    metadata,
    Column("decision", String, primary_key=True),
    Column("deployment", String, nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

run = Table(
    "run",
    metadata,
    Column("id", String, primary_key=True),
    Column("target", String, nullable=False),
    Column("database_key", String, nullable=False),
    Column("deployment", String, nullable=False, index=True),
    Column("state", String, nullable=False),
    Column("is_finished", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
Index("ix_run_created", run.c.created_at)
Index("ix_run_target_created", run.c.target, run.c.created_at)
Index("uq_run_unfinished_by_database", run.c.database_key, unique=True, sqlite_where=text("is_finished = 0"))

transition = Table(
    "transition",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("run", String, nullable=False, index=True),
    Column("before", String, nullable=False),
    Column("after", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("statement", String, nullable=False),
)

journal = Table(
    "journal",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("run", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("phase", String, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("evidence", LargeBinary, nullable=False),
)
Index("ix_journal_run", journal.c.run, journal.c.seq)

log = Table(
    "log",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("run", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("text", String, nullable=False),
)
Index("ix_log_run", log.c.run, log.c.seq)

backup = Table(
    "backup",
    metadata,
    Column("id", String, primary_key=True),
    Column("target", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
Index("ix_backup_target_created", backup.c.target, backup.c.created_at)

incident = Table(
    "incident",
    metadata,
    Column("id", String, primary_key=True),
    Column("target", String, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("closed_at", Float),
    Column("body", LargeBinary, nullable=False),
)
Index("ix_incident_open", incident.c.target, sqlite_where=incident.c.closed_at.is_(None))

approval = Table(
    "approval",
    metadata,
    Column("run", String, primary_key=True),
    Column("actor", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

pause = Table(
    "pause",
    metadata,
    Column("target", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

token = Table(
    "token",
    metadata,
    Column("name", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

total = Table(
    "total",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", Float, nullable=False),
)
