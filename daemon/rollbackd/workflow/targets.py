"""The targets as they are configured now: one live mapping that all parts share, and the one place where a target changes.

Whoever works with a target says so (`using`). A new configuration of it comes into force between two uses: at once where
nobody uses it, else as soon as the last one is done. So a run, a gate or a look at a deployment sees one configuration from its
beginning to its end, and nothing is closed under anybody's hands. A target that was taken out goes when it is no longer
watched either (`keeping`).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from contextlib import contextmanager

import structlog

from rollbackd.errors import RollbackdError
from rollbackd.settings import Target
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.planning import Planner

log = structlog.get_logger()


class Targets(Mapping[str, Guarded]):
    """Target by name. Who iterates sees the targets of that moment, whatever changes meanwhile."""

    def __init__(
        self, guarded: Iterable[Guarded], plan_for: Callable[[Guarded], Planner], happenings: Happenings
    ) -> None:
        self._plan_for = plan_for
        self._happenings = happenings
        # Replaced as a whole, never changed.
        self._now = {one.name: one for one in guarded}
        self._next: dict[str, Guarded | None] = {}
        self._uses: Counter[str] = Counter()
        self._keeps: Counter[str] = Counter()
        self._closing: set[asyncio.Task[None]] = set()
        self.planners = {name: plan_for(one) for name, one in self._now.items()}

    def __getitem__(self, name: str) -> Guarded:
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def values(self) -> ValuesView[Guarded]:
        """The targets of this moment."""
        return self._now.values()

    def items(self) -> ItemsView[str, Guarded]:
        """The targets of this moment with their names."""
        return self._now.items()

    @contextmanager
    def using(self, name: str) -> Iterator[Guarded]:
        """The target as it is now; until the block ends it is neither changed nor closed.

        Raises:
            KeyError: when there is none of that name.
        """
        guarded = self._now[name]
        self._uses[name] += 1
        try:
            yield guarded
        finally:
            self._uses[name] -= 1
            self._take_next(name)

    @contextmanager
    def keeping(self, name: str) -> Iterator[None]:
        """Until the block ends the target may be changed, and isn't taken out."""
        self._keeps[name] += 1
        try:
            yield
        finally:
            self._keeps[name] -= 1
            self._take_next(name)

    def in_use(self, name: str) -> bool:
        """Whether somebody uses the target right now."""
        return self._uses[name] > 0

    def is_leaving(self, name: str) -> bool:
        """Whether the target was taken out of the configuration, and only what is under way keeps it."""
        return name in self._next and self._next[name] is None

    def bring_in(
        self, wanted: Iterable[Target], wire: Callable[[Target], Guarded]
    ) -> tuple[list[str], list[str]]:
        """Make these the targets. What nobody uses changes before this returns.

        Returns:
            The names of the targets that are added, changed or removed; and which of them wait for what is under way.
        """
        by_name = {target.name: target for target in wanted}
        self._next = {name: None for name in self._now if name not in by_name}
        for name, target in by_name.items():
            if name not in self._now or self._now[name].settings != target:
                self._next[name] = wire(target)
        changed = sorted(self._next)
        for name in changed:
            self._take_next(name)
        order = [*by_name, *(name for name in self._now if name not in by_name)]
        self._now = {name: self._now[name] for name in order if name in self._now}
        return changed, sorted(self._next)

    async def close(self) -> None:
        """Close every target, and wait for those that are being closed already."""
        for one in self._now.values():
            await one.close()
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def _take_next(self, name: str) -> None:
        if name not in self._next or self._uses[name]:
            return
        coming = self._next[name]
        if coming is None and self._keeps[name]:
            return
        del self._next[name]
        before = self._now.get(name)
        if coming is not None:
            self._now = {**self._now, name: coming}
            self.planners[name] = self._plan_for(coming)
            happened = "target_added" if before is None else "target_changed"
            self._happenings.tell(happened, target=name, environment=coming.settings.environment)
        elif before is not None:
            self._now = {other: one for other, one in self._now.items() if other != name}
            del self.planners[name]
            self._happenings.tell("target_removed", target=name, environment=before.settings.environment)
        if before is not None:
            closing = asyncio.create_task(self._close(before), name=f"closing {name}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close(self, one: Guarded) -> None:
        try:
            await one.close()
        except RollbackdError as error:
            log.warning("target_not_closed", target=one.name, error=str(error))
