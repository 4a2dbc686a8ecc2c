"""What a case of the corpus is: a small Alembic project, its rows, and what is true of its way back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["reversible", "reversible_with_loss", "irreversible", "will_fail", "unknown"]
Outcome = Literal["to", "from", "intermediate", "neither", "not_run"]

# In env.py, files, scripts and settings alike, the builder replaces @URL@ (SQLAlchemy's address of the database), @LIBPQ@
# (the same for a driver), @HOST@, @PORT@, @USER@, @PASSWORD@ and @DATABASE@.


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What must be said before, and what the database holds afterwards.

    Parts of sentences (`refused`, `why`) are looked for without regard to upper and lower case.
    """

    refused: str = ""
    """A part of the one sentence with which planning refuses outright; empty where a plan is made."""
    verdict: Mapping[str, Verdict] = field(default_factory=dict)
    """By revision, for those that the way back reaches."""
    why: Mapping[str, str] = field(default_factory=dict)
    """By revision, a part of the reason for `irreversible`, `will_fail` and `unknown`."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """Exactly what goes, by its name today: `schema.table` (as TableName.text() has it) for rows that are dropped, deleted
    or overwritten, `schema.table.column` for values that are dropped, or changed by a new type so that a cast back to today's
    doesn't give them again. NULLs and generated values aren't counted, nor rows that an UPDATE leaves as they are.
    Partitions are counted each by its own name. A table whose rows move elsewhere is still a table that goes."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """Tables and columns that have another name afterwards: today's name to that one."""
    outcome: Outcome = "to"
    """Where the database stands if it is run nevertheless; `not_run` where it must not be run at all."""
    heads_after: tuple[str, ...] = ("r1",)
    """Rows of the version table afterwards, sorted; with `not_run`, as built."""
    alone: frozenset[str] = frozenset()
    """Revisions that can't share a transaction."""
    gone_after: tuple[str, ...] = ()
    there_after: tuple[str, ...] = ()
    """`table` or `table.column`, in any schema: what was there before the run and is gone afterwards, and what is there."""
    restored: bool = True
    """Whether all rows are as before after `alembic upgrade` back to where it was and `rollbackd restore`; rows that the
    scripts themselves wrote may be there besides."""
    drift: str = ""
    """A part of the schema's drift (SchemaDifference.lines()) versus the one that stood at `heads_after` before the upgrade;
    empty where the way back returns to it exactly."""
    upgrade_fails: str = ""
    """A part of the error with which the upgrade back fails, where it does."""


@dataclass(frozen=True)
class Revision:
    """One script. `down` is None for "the one before it in the case" and () for a base; `downgrade` None for a missing one."""

    id: str
    upgrade: str = "pass"
    downgrade: str | None = "pass"
    down: tuple[str, ...] | None = None
    depends_on: tuple[str, ...] = ()
    branch_labels: tuple[str, ...] = ()
    head: str = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One small project. The statements of `rows` are run once it stands at `at`; what is asked for is `to`."""

    name: str
    about: str
    revisions: tuple[Revision, ...]
    expect: Expected
    rows: tuple[str, ...] = ()
    at: str = "heads"
    to: str = "-1"
    env: str = "plain"
    prepare: tuple[str, ...] = ()
    """SQL before the first upgrade, as the superuser."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What of the target's `migrations` section differs from the default; may hold tokens."""
    files: Mapping[str, str] = field(default_factory=dict)
    """More files of the project, by their path in its folder."""
    afterwards: tuple[Revision, ...] = ()
    """Scripts that are written over the first ones once the database stands."""
    typed: tuple[str, ...] = ()
    """What plain Alembic is asked for in place of `to`, one downgrade each."""
    ordinary_role: bool = False
    """An ordinary role owns the database and migrates it, in place of the superuser."""
    concurrent: str = ""
    """SQL that another session commits while the archive is made (plain Alembic: right before the downgrade)."""


def sql(*statements: str) -> str:
    """The body of an upgrade or downgrade that executes these statements."""
    return "\n".join(f"op.execute({statement!r})" for statement in statements)


# Most cases grow from this table of three customers.
CUSTOMER = Revision(
    "r1",
    sql("CREATE TABLE customer (id int PRIMARY KEY, name text, email text)"),
    "op.drop_table('customer')",
)
THREE = "INSERT INTO customer VALUES (1, 'Ann', 'ann@x'), (2, 'Bob', NULL), (3, 'Cy', 'cy@x')"


def grown(upgrade: str, downgrade: str | None, **more: Any) -> tuple[Revision, Revision]:
    """The table of customers, and one revision upon it."""
    return CUSTOMER, Revision("r2", upgrade, downgrade, **more)


def works(**more: Any) -> Expected:
    """r2 comes off, and nothing is lost."""
    return Expected(**{"verdict": {"r2": "reversible"}, **more})


def loses(lost: Mapping[str, int], **more: Any) -> Expected:
    """r2 comes off, and this is lost."""
    return Expected(**{"verdict": {"r2": "reversible_with_loss"}, "lost": lost, **more})


def fails(why: str, revision: str = "r2", **more: Any) -> Expected:
    """The uppermost revision can't come off with the rows as they are, and everything stays."""
    failing: dict[str, Any] = {"verdict": {revision: "will_fail"}, "why": {revision: why}}
    return Expected(**{**failing, "outcome": "from", "heads_after": (revision,), **more})


def refuses(sentence: str, *heads: str, **more: Any) -> Expected:
    """No plan is made; the database stays at these heads."""
    return Expected(**{"refused": sentence, "outcome": "not_run", "heads_after": heads, **more})
