"""The arithmetic of heads, held against Alembic's own on a real version table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from alembic.runtime.migration import HeadMaintainer, MigrationContext, MigrationStep
from alembic.script.revision import Revision as AlembicRevision
from alembic.script.revision import RevisionMap
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st

from rollbackd.core.revisions import Revision, RevisionGraph


class Script(AlembicRevision):
    """What Alembic's step needs of a script, without a file."""

    module = SimpleNamespace(upgrade=lambda: None, downgrade=lambda: None)
    doc = longdoc = path = ""


@st.composite
def histories(draw: st.DrawFn) -> tuple[Revision, ...]:
    """A revision DAG with several roots, merge points and dependencies across branches."""
    found: list[Revision] = []
    names = draw(st.permutations("abcdefghi"[: draw(st.integers(1, 9))]))
    for index, name in enumerate(names):
        earlier = st.lists(st.sampled_from(names[:index]), unique=True, max_size=3) if index else st.just([])
        graph = RevisionGraph(tuple(found))
        # Alembic can't upgrade over a merge of a revision with what that stands on: such a database can't be had.
        down = graph.heads_of(graph.closure(tuple(draw(earlier))))
        depends_on = tuple(d for d in draw(earlier) if d not in down)[:2]
        found.append(Revision(id=name, down=down, depends_on=depends_on))
    return tuple(found)


class Database:
    """An in-memory SQLite with Alembic's version table."""

    def __init__(self, history: tuple[Revision, ...]) -> None:
        self.scripts = {
            r.id: Script(r.id, r.down or None, dependencies=r.depends_on or None) for r in history
        }
        self.map = RevisionMap(lambda: list(self.scripts.values()))
        self.engine = sqlalchemy.create_engine("sqlite://")
        self.connection = self.engine.connect()
        self.context = MigrationContext.configure(self.connection)
        self.context._ensure_version_table()

    def take(self, step: Any) -> tuple[str, ...]:
        """Take one step as Alembic does, and return what the version table holds."""
        HeadMaintainer(self.context, self.context.get_current_heads()).update_to_step(step)
        return self.heads()

    def up(self, revision: str) -> tuple[str, ...]:
        return self.take(MigrationStep.upgrade_from_script(self.map, self.map.get_revision(revision)))

    def down(self, revision: str) -> tuple[str, ...]:
        return self.take(MigrationStep.downgrade_from_script(self.map, self.map.get_revision(revision)))

    def heads(self) -> tuple[str, ...]:
        return tuple(sorted(self.context.get_current_heads()))

    def close(self) -> None:
        self.connection.close()
        self.engine.dispose()


@settings(max_examples=200, deadline=None)
@given(history=histories(), data=st.data())
def test_after_every_step_of_a_path_alembic_s_version_table_holds_the_heads_that_the_path_says(
    history: tuple[Revision, ...], data: st.DataObject
) -> None:
    graph = RevisionGraph(history)
    ids = [r.id for r in history]
    applied = graph.closure(tuple(data.draw(st.lists(st.sampled_from(ids), min_size=1, unique=True))))
    kept = graph.closure(tuple(data.draw(st.lists(st.sampled_from(sorted(applied)), unique=True))))
    database = Database(history)
    try:
        for revision in (r.id for r in history if r.id in applied):
            try:
                database.up(revision)
            except (KeyError, AssertionError):
                # Alembic 1.20 can't upgrade over some redundant parents: such a database can't be had.
                reject()
        assert database.heads() == graph.heads_of(applied)
        if kept == applied:
            return
        path = graph.path_down(database.heads(), graph.heads_of(kept))
        event(f"{len(path.revisions)} steps")
        for revision, heads in zip(path.revisions, path.heads_after, strict=True):
            assert database.down(revision) == heads
        assert path.heads_after[-1] == path.to_heads
        assert set(path.revisions) == applied - kept
    finally:
        database.close()


@pytest.mark.parametrize(
    ("history", "first_down", "heads"),
    [
        # A merge point leaves both of its parents.
        ([("a", "", ""), ("b", "a", ""), ("c", "a", ""), ("m", "bc", "")], "m", ("b", "c")),
        # A dependency that nothing else holds comes back to the table.
        ([("a", "", ""), ("x", "", ""), ("b", "a", "x")], "b", ("a", "x")),
        # One that another head still stands on doesn't.
        ([("a", "", ""), ("x", "", ""), ("y", "x", ""), ("b", "a", "x")], "b", ("a", "y")),
    ],
)
def test_alembic_leaves_these_heads_and_so_do_we(
    history: list[tuple[str, str, str]], first_down: str, heads: tuple[str, ...]
) -> None:
    revisions = tuple(Revision(id=i, down=tuple(d), depends_on=tuple(n)) for i, d, n in history)
    graph = RevisionGraph(revisions)
    database = Database(revisions)
    try:
        for revision in revisions:
            database.up(revision.id)
        applied = frozenset(r.id for r in revisions)
        assert database.down(first_down) == heads == graph.heads_of(applied - {first_down})
    finally:
        database.close()
