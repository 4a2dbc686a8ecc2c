"""The embedded store: SQLite in WAL mode, synchronous=FULL, one writer, group commit; its schema under our own Alembic."""
