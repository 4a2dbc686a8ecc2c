"""Changing a watched deployment. Pipeline, watch and decision each change their own part of the same record."""

import asyncio
from collections.abc import Callable

from rollbackd.core.records import Deployment
from rollbackd.errors import NotFoundError
from rollbackd.ports import Store


class Deployments:
    """Reads, changes and saves one at a time, so that nobody saves over what another has just learned."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._turn = asyncio.Lock()

    async def change(self, deployment_id: str, change: Callable[[Deployment], Deployment]) -> Deployment:
        """Save what `change` makes of the deployment as it is recorded now, and return that."""
        async with self._turn:
            known = await self.store.deployment(deployment_id)
            if known is None:
                raise NotFoundError(f"there is no deployment {deployment_id}")
            changed = change(known)
            if changed != known:
                await self.store.save_deployment(changed)
            return changed
