"""The first schema of the store.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "approval",
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run", "actor", name=op.f("pk_approval")),
    )
    op.create_table(
        "backup",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backup")),
    )
    op.create_index("ix_backup_target_created", "backup", ["target", "created_at"], unique=False)
    op.create_table(
        "decision",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decision")),
    )
    op.create_index(op.f("ix_decision_deployment"), "decision", ["deployment"], unique=False)
    op.create_index("ix_decision_at", "decision", ["at"], unique=False)
    op.create_index("ix_decision_target_at", "decision", ["target", "at"], unique=False)
    op.create_table(
        "delivery",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("hook", sa.String(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("body_sha256", sa.String(), nullable=False),
        sa.Column("headers", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("ignored_because", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_delivery")),
        sa.UniqueConstraint("hook", "identity", name=op.f("uq_delivery_hook")),
        sa.UniqueConstraint("id", name=op.f("uq_delivery_id")),
    )
    op.create_index(op.f("ix_delivery_received_at"), "delivery", ["received_at"], unique=False)
    op.create_table(
        "deployment",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployment")),
    )
    op.create_index("ix_deployment_started", "deployment", ["started_at"], unique=False)
    op.create_index("ix_deployment_target_started", "deployment", ["target", "started_at"], unique=False)
    op.create_index(
        "ix_deployment_watched", "deployment", ["id"], unique=False, sqlite_where=sa.text("ended_at IS NULL")
    )
    op.create_table(
        "document",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("taken_at", sa.Float(), nullable=False),
        sa.Column("rehearsed", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_document")),
    )
    op.create_index("ix_document_target_taken", "document", ["target", "taken_at"], unique=False)
    op.create_table(
        "event",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("delivery", sa.String(), nullable=False),
        sa.Column("hook", sa.String(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("settled_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_event")),
    )
    op.create_index(op.f("ix_event_delivery"), "event", ["delivery"], unique=False)
    op.create_index(
        "ix_event_waiting", "event", ["seq"], unique=False, sqlite_where=sa.text("settled_at IS NULL")
    )
    op.create_table(
        "incident",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("opened_at", sa.Float(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incident")),
    )
    op.create_index(
        "ix_incident_open", "incident", ["target"], unique=False, sqlite_where=sa.text("closed_at IS NULL")
    )
    op.create_table(
        "investigation",
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("decision", name=op.f("pk_investigation")),
    )
    op.create_index(op.f("ix_investigation_deployment"), "investigation", ["deployment"], unique=False)
    op.create_table(
        "journal",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_journal")),
    )
    op.create_index("ix_journal_run", "journal", ["run", "seq"], unique=False)
    op.create_table(
        "log",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_log")),
    )
    op.create_index("ix_log_run", "log", ["run", "seq"], unique=False)
    op.create_table(
        "measurement",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_measurement")),
    )
    op.create_index(op.f("ix_measurement_at"), "measurement", ["at"], unique=False)
    op.create_index("ix_measurement_deployment", "measurement", ["deployment", "seq"], unique=False)
    op.create_table(
        "meta",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_meta")),
    )
    op.create_table(
        "pause",
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("target", name=op.f("pk_pause")),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("database_key", sa.String(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("is_finished", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
    )
    op.create_index("ix_run_created", "run", ["created_at"], unique=False)
    op.create_index(op.f("ix_run_deployment"), "run", ["deployment"], unique=False)
    op.create_index("ix_run_target_created", "run", ["target", "created_at"], unique=False)
    op.create_index(
        "uq_run_unfinished_by_database",
        "run",
        ["database_key"],
        unique=True,
        sqlite_where=sa.text("is_finished = 0"),
    )
    op.create_table(
        "signal",
        sa.Column("service", sa.String(), nullable=False),
        sa.Column("environment", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("resolved_at", sa.Float(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("service", "environment", "source", "key", name=op.f("pk_signal")),
    )
    op.create_index(
        "ix_signal_name_firing",
        "signal",
        ["environment", "name"],
        unique=False,
        sqlite_where=sa.text("resolved_at IS NULL"),
    )
    op.create_table(
        "token",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_token")),
    )
    op.create_table(
        "total",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_total")),
    )
    op.create_table(
        "transition",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("before", sa.String(), nullable=False),
        sa.Column("after", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("statement", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_transition")),
    )
    op.create_index(op.f("ix_transition_run"), "transition", ["run"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_transition_run"), table_name="transition")
    op.drop_table("transition")
    op.drop_table("total")
    op.drop_table("token")
    op.drop_index("ix_signal_name_firing", table_name="signal", sqlite_where=sa.text("resolved_at IS NULL"))
    op.drop_table("signal")
    op.drop_index("uq_run_unfinished_by_database", table_name="run", sqlite_where=sa.text("is_finished = 0"))
    op.drop_index("ix_run_target_created", table_name="run")
    op.drop_index(op.f("ix_run_deployment"), table_name="run")
    op.drop_index("ix_run_created", table_name="run")
    op.drop_table("run")
    op.drop_table("pause")
    op.drop_table("meta")
    op.drop_index("ix_measurement_deployment", table_name="measurement")
    op.drop_index(op.f("ix_measurement_at"), table_name="measurement")
    op.drop_table("measurement")
    op.drop_index("ix_log_run", table_name="log")
    op.drop_table("log")
    op.drop_index("ix_journal_run", table_name="journal")
    op.drop_table("journal")
    op.drop_index(op.f("ix_investigation_deployment"), table_name="investigation")
    op.drop_table("investigation")
    op.drop_index("ix_incident_open", table_name="incident", sqlite_where=sa.text("closed_at IS NULL"))
    op.drop_table("incident")
    op.drop_index("ix_event_waiting", table_name="event", sqlite_where=sa.text("settled_at IS NULL"))
    op.drop_index(op.f("ix_event_delivery"), table_name="event")
    op.drop_table("event")
    op.drop_index("ix_document_target_taken", table_name="document")
    op.drop_table("document")
    op.drop_index("ix_deployment_watched", table_name="deployment", sqlite_where=sa.text("ended_at IS NULL"))
    op.drop_index("ix_deployment_target_started", table_name="deployment")
    op.drop_index("ix_deployment_started", table_name="deployment")
    op.drop_table("deployment")
    op.drop_index(op.f("ix_delivery_received_at"), table_name="delivery")
    op.drop_table("delivery")
    op.drop_index("ix_decision_target_at", table_name="decision")
    op.drop_index("ix_decision_at", table_name="decision")
    op.drop_index(op.f("ix_decision_deployment"), table_name="decision")
    op.drop_table("decision")
    op.drop_index("ix_backup_target_created", table_name="backup")
    op.drop_table("backup")
    op.drop_table("approval")
