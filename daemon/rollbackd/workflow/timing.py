"""How long a run was at work, and how long it waited for people."""

import structlog

from rollbackd.core.run import time_in_states
from rollbackd.errors import RollbackdError
from rollbackd.ports import Store

log = structlog.get_logger()


async def time_spent(store: Store, run_id: str) -> dict[str, float]:
    """Seconds in each state that the run has left. Empty when it can't be read: a run's end doesn't hang on it."""
    try:
        return {str(state): s for state, s in time_in_states(await store.passages(run_id)).items()}
    except RollbackdError as error:
        log.warning("time_spent_unread", run=run_id, error=str(error))
        return {}
