"""Alembic in the target's own interpreter.

`child` is what runs there and imports nothing of ours; `process` starts it and talks to it; `alembic` is the port.
"""
