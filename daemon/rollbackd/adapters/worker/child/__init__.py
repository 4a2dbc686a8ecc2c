"""The migration worker: runs inside the target's own interpreter, so it needs the standard library, alembic and sqlalchemy
alone. `process.py` hands these modules over on standard input; nothing else of ours is there.
"""
