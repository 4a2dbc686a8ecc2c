"""rollbackd: rolls back bad Alembic deploys without losing a row."""

__version__ = "0.1.0"
