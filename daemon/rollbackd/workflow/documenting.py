"""Documenting the state of a database: revision, schema, counts, at one moment."""

from rollbackd.core.records import StateDocument
from rollbackd.core.schema import SchemaDifference, compare_schemas
from rollbackd.ports import Clock, Store
from rollbackd.workflow.guarded import Guarded


async def document_state(
    guarded: Guarded, store: Store, clock: Clock, *, count: bool = True
) -> StateDocument:
    """Read the state and keep it. Counting heeds the target's budget; without `count` only revision and schema are read.

    The heads are read before and after: a state whose revision moved meanwhile is read again.
    """
    counting = guarded.settings.counting
    while True:
        heads = await guarded.database.heads()
        schema = await guarded.database.schema()
        counts = await guarded.database.counts(counting.budget, counting.most_tables) if count else ()
        if heads == await guarded.database.heads():
            break
    document = StateDocument(
        id=clock.new_id("state"),
        target=guarded.name,
        taken_at=clock.now(),
        heads=heads,
        fingerprint=schema.fingerprint(),
        counts=counts,
        schema=schema,
    )
    await store.save_document(document)
    return document


async def schema_difference(guarded: Guarded, before: StateDocument) -> SchemaDifference:
    """How the catalog now differs from the documented one."""
    return compare_schemas(before.schema, await guarded.database.schema())
