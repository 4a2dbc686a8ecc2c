"""Where a database stands after a downgrade was begun: FROM, TO or NEITHER. Only the database is believed."""

from enum import StrEnum

import msgspec

from rollbackd.core.assess import heads_text
from rollbackd.core.schema import SchemaDifference


class Standing(StrEnum):
    """The three answers."""

    FROM = "from"
    TO = "to"
    NEITHER = "neither"


class WhereItStands(msgspec.Struct, frozen=True, kw_only=True):
    """The answer and the statement for a person."""

    standing: Standing
    statement: str


def where_it_stands(
    heads_now: tuple[str, ...],
    from_heads: tuple[str, ...],
    to_heads: tuple[str, ...],
    since_before: SchemaDifference | None,
    *,
    expects_change: bool,
) -> WhereItStands:
    """Judge by the version table and the catalog.

    Args:
        heads_now: the rows of the version table.
        from_heads: the heads before the step.
        to_heads: the heads that the step aims at.
        since_before: how the catalog differs from the one documented right before the step; None if none was.
        expects_change: whether the step's statements change the catalog, as far as they could be read.
    """
    at = heads_text(heads_now)
    if set(heads_now) == set(to_heads):
        if expects_change and since_before is not None and since_before.is_empty():
            return WhereItStands(
                standing=Standing.NEITHER,
                statement=f"the stamp is {at}, as wanted, but the schema is still that of {heads_text(from_heads)}: the"
                " stamp moved and the downgrade's changes are missing",
            )
        return WhereItStands(standing=Standing.TO, statement=f"the database is at {at}, as wanted")
    if set(heads_now) == set(from_heads):
        if since_before is None:
            return WhereItStands(
                standing=Standing.NEITHER,
                statement=f"the stamp is still {at}, but the schema before wasn't documented, so nobody can say that it is whole",
            )
        if not since_before.is_empty():
            return WhereItStands(
                standing=Standing.NEITHER,
                statement=f"the stamp is still {at}, but the schema has changed: {since_before.summary()}. Some statements of"
                f" the downgrade to {heads_text(to_heads)} were committed without the stamp",
            )
        return WhereItStands(standing=Standing.FROM, statement=f"the database is at {at}, unchanged")
    return WhereItStands(
        standing=Standing.NEITHER,
        statement=f"the version table says {at}, which is neither {heads_text(from_heads)} nor {heads_text(to_heads)}",
    )
