"""Alembic's revision graph as plain values, and the way from one set of heads down to another.

Steps are absolute. What is asked for is the *resulting set of heads*, so that crossing a merge point or leaving a
branch behind has to be said and never just happens.
"""

import msgspec

from rollbackd.errors import RefusedError


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """One migration script's place in the graph; `down` and `depends_on` are full ids."""

    id: str
    down: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    branch_labels: tuple[str, ...] = ()
    title: str = ""

    @property
    def parents(self) -> tuple[str, ...]:
        """What must be there for this one to be applied."""
        return self.down + self.depends_on


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """The revisions to take off, first to last, and what the version table holds after each.

    `to_heads` is what it holds in the end. Where a revision names a parent that another of its parents stands on,
    Alembic can leave a row more than the heads that were asked for.
    """

    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]
    revisions: tuple[str, ...]
    heads_after: tuple[tuple[str, ...], ...]


class RevisionGraph:
    """All revisions of one set of scripts."""

    def __init__(self, revisions: tuple[Revision, ...]) -> None:
        self._by_id = {revision.id: revision for revision in revisions}
        self._children: dict[str, list[str]] = {revision.id: [] for revision in revisions}
        for revision in revisions:
            for parent in revision.parents:
                self._children.setdefault(parent, []).append(revision.id)

    def __contains__(self, revision_id: str) -> bool:
        return revision_id in self._by_id

    def __getitem__(self, revision_id: str) -> Revision:
        return self._by_id[revision_id]

    def ids(self) -> tuple[str, ...]:
        """Every id, in the order the scripts were described."""
        return tuple(self._by_id)

    def closure(self, heads: tuple[str, ...]) -> frozenset[str]:
        """The heads and everything they stand on, dependencies included.

        Raises:
            RefusedError: when a head or an ancestor has no script.
        """
        found: set[str] = set()
        waiting = list(heads)
        while waiting:
            current = waiting.pop()
            if current in found:
                continue
            if current not in self._by_id:
                raise RefusedError(
                    f"revision {current} has no script here: bring back the release that holds it, or give the folder"
                    " that does; rollbackd never stamps over an unknown revision"
                )
            found.add(current)
            waiting.extend(self._by_id[current].parents)
        return frozenset(found)

    def heads_of(self, applied: frozenset[str]) -> tuple[str, ...]:
        """What the version table holds when exactly these revisions are applied (closed under parents), sorted."""
        below = {parent for revision_id in applied for parent in self._by_id[revision_id].parents}
        return tuple(sorted(applied - below))

    def heads(self) -> tuple[str, ...]:
        """The heads of the scripts themselves, as the version table would show them."""
        return self.heads_of(frozenset(self._by_id))

    def resolve(self, asked: str, current: tuple[str, ...]) -> tuple[str, ...]:
        """Turn what a person typed into the set of heads that is meant.

        `asked` is `base`, `-N`, an id, an unambiguous beginning of an id, or several ids with commas: the wanted heads.

        Raises:
            RefusedError: when it names nothing, more than one thing, or a set that isn't reached from `current`.
        """
        text = asked.strip()
        if not text:
            raise RefusedError("no revision was named: give an id, several with commas, -1 or base")
        if text == "base":
            return ()
        if text.startswith("-"):
            return self._relative(text, current)
        wanted = tuple(sorted({self._one(part.strip()) for part in text.split(",")}))
        applied = self.closure(current)
        absent = [revision_id for revision_id in wanted if revision_id not in applied]
        if absent:
            self._refuse_absent(absent, current)
        reached = self._left_after(wanted, applied)
        if set(reached) != set(wanted):
            raise RefusedError(
                f"going down to {', '.join(wanted)} leaves the heads {', '.join(reached)}:"
                f" say --to {','.join(reached)} if that is what you mean"
            )
        return wanted

    def path_down(self, current: tuple[str, ...], wanted: tuple[str, ...]) -> Path:
        """The absolute steps from `current` down to the heads `wanted`, children before parents.

        Raises:
            RefusedError: when there is nothing to do or no way down.
        """
        applied = self.closure(current)
        kept = self.closure(wanted)
        if not kept <= applied:
            self._refuse_absent(sorted(kept - applied), current)
        if set(self.heads_of(kept)) != set(wanted):
            raise RefusedError(f"{', '.join(wanted)} can't all be heads: one stands on another")
        if kept == applied:
            raise RefusedError(
                f"the database is at {', '.join(current) or 'base'} already; there is nothing to downgrade"
            )
        standing_on = {r: len(applied.intersection(self._children[r])) for r in applied}
        heads = {r for r, count in standing_on.items() if count == 0}
        order: list[str] = []
        heads_after: list[tuple[str, ...]] = []
        table = frozenset(current)
        for _ in range(len(applied) - len(kept)):
            # Going on below the last one keeps a branch together; the id breaks ties, so that a plan is reproducible.
            previous = self._by_id[order[-1]].parents if order else ()
            chosen = max(heads - kept, key=lambda r: (r in previous, r))
            heads.discard(chosen)
            for parent in set(self._by_id[chosen].parents):
                standing_on[parent] -= 1
                if standing_on[parent] == 0:
                    heads.add(parent)
            order.append(chosen)
            table = self._table_without(chosen, table)
            heads_after.append(tuple(sorted(table)))
        return Path(
            from_heads=tuple(sorted(current)),
            to_heads=heads_after[-1],
            revisions=tuple(order),
            heads_after=tuple(heads_after),
        )

    def order_up(self, applied: tuple[str, ...] = (), to: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """Every revision that isn't in the closure of `applied`, parents before children; up to `to` where given.

        Raises:
            RefusedError: when a head or an ancestor has no script.
        """
        done = set(self.closure(applied))
        wanted = self.closure(to) if to is not None else frozenset(self._by_id)
        waiting_for = {r: {p for p in self._by_id[r].parents if p not in done} for r in wanted - done}
        ready = sorted(r for r, parents in waiting_for.items() if not parents)
        order: list[str] = []
        while ready:
            # Going on above the last one keeps a branch together; the id breaks ties.
            above = self._children[order[-1]] if order else []
            chosen = next((r for r in ready if r in above), ready[0])
            ready.remove(chosen)
            order.append(chosen)
            for child in sorted(set(self._children[chosen])):
                if child in waiting_for and chosen in waiting_for[child]:
                    waiting_for[child].discard(chosen)
                    if not waiting_for[child]:
                        ready.append(child)
        return tuple(order)

    def _table_without(self, taken: str, table: frozenset[str]) -> frozenset[str]:
        """The version table after Alembic took off one of its heads, as its RevisionStep computes it."""
        revision = self._by_id[taken]
        # A dependency counts for nothing where a revision further down the branch declares the same one.
        declared: set[str] = set()
        below = list(revision.down)
        while below:
            current = self._by_id[below.pop()]
            declared.update(current.depends_on)
            below.extend(current.down)
        parents = [*revision.down, *(d for d in revision.depends_on if d not in declared)]
        if others := table - {taken}:
            return others | (frozenset(parents) - self.closure(tuple(sorted(others))))
        return frozenset(self.heads_of(self.closure(tuple(parents))))

    def _one(self, text: str) -> str:
        if not text:
            raise RefusedError("no revision was named between two commas, or before or after one")
        if text in self._by_id:
            return text
        for revision in self._by_id.values():
            if text in revision.branch_labels:
                raise RefusedError(
                    f"{text} is a branch label: name the revision that should be the head afterwards"
                )
        if "@" in text:
            raise RefusedError(
                f"{text} is relative to a branch: name the revision that should be the head afterwards"
            )
        found = sorted(r for r in self._by_id if r.startswith(text))
        if len(found) == 1:
            return found[0]
        if found:
            raise RefusedError(f"{text} is the beginning of {', '.join(found)}: write out which is meant")
        raise RefusedError(
            f"no script has the revision {text}; the newest here are {', '.join(self.heads()) or 'none'}"
        )

    def _relative(self, text: str, current: tuple[str, ...]) -> tuple[str, ...]:
        if not text[1:].isdecimal() or int(text[1:]) == 0:
            raise RefusedError(f"{text} isn't a number of steps: use -1, -2 and so on, an id, or base")
        if len(current) > 1:
            raise RefusedError(
                f"{text} is ambiguous: the heads are {', '.join(current)}; name the heads that should remain"
            )
        position = current
        for _ in range(int(text[1:])):
            if not position:
                raise RefusedError(f"{text} goes below base")
            revision = self._by_id.get(position[0]) or self._missing(position[0])
            below = self.heads_of(self.closure(position) - {revision.id})
            if len(below) > 1:
                raise RefusedError(
                    f"{text} is ambiguous: {revision.id} merges {', '.join(below)}; say --to {','.join(below)} to end with"
                    " these heads, or name one that lies below them all"
                )
            position = below
        return position

    def _missing(self, revision_id: str) -> Revision:
        self.closure((revision_id,))
        raise RefusedError(f"revision {revision_id} has no script here")

    def _left_after(self, wanted: tuple[str, ...], applied: frozenset[str]) -> tuple[str, ...]:
        """The heads that remain once everything that stands on the wanted ones is off and nothing else is."""
        if len(wanted) > 1:
            return self.heads_of(self.closure(wanted))
        standing: set[str] = set()
        waiting = list(self._children[wanted[0]])
        while waiting:
            current = waiting.pop()
            if current in applied and current not in standing:
                standing.add(current)
                waiting.extend(self._children[current])
        return self.heads_of(applied - standing)

    def _refuse_absent(self, absent: list[str], current: tuple[str, ...]) -> None:
        above = [r for r in absent if any(h in self.closure((r,)) for h in current)]
        if above:
            raise RefusedError(
                f"{', '.join(above)} lies ahead of {', '.join(current)}: that would be an upgrade"
            )
        raise RefusedError(
            f"{', '.join(absent)} isn't below {', '.join(current) or 'base'}: it lies on another branch"
        )
