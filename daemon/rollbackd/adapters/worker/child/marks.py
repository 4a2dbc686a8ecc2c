"""By what the worker knows a server, and by what others know that it is at work."""

from __future__ import annotations

# Advisory locks belong to one database, so one constant key is one lock for each database. The digits spell "rollback".
LOCK_KEY = 0x726F6C6C6261636B
MARKER = "rollbackd:"
# Who a server is where its administrators let nobody call pg_control_system(): when it started, to the microsecond.
STARTED = "started "
START_IDENTITY = "SELECT 'started ' || extract(epoch FROM pg_postmaster_start_time())::text"
# Where archives lie; `core/archives.py` says what is in it.
ARCHIVE_SCHEMA = "rollbackd_archive"
