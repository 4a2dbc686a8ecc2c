"""Sequences: none gives a value again that came back with a row."""

from collections.abc import Iterator

from rollbackd.core.archives import ArchiveEntry
from rollbackd.core.restoring.present import PresentTable
from rollbackd.core.restoring.sql import literal
from rollbackd.core.restoring.steps import RestoreStep
from rollbackd.core.schema import TableName, quoted


def bring_up_sequences(ready: list[tuple[ArchiveEntry, PresentTable]]) -> Iterator[RestoreStep]:
    """No sequence may give a value again that came back with a row; none goes backwards."""
    done: set[TableName] = set()
    for entry, table in ready:
        for sequence in table.sequences:
            if sequence.sequence in done or sequence.increment <= 0:
                continue
            done.add(sequence.sequence)
            last = max(
                (
                    kept.last_value
                    for other, its_table in ready
                    if its_table.table == table.table
                    for kept in other.definition.sequences
                    if kept.column == sequence.column
                ),
                default=0,
            )
            name = sequence.sequence.sql()
            highest = (
                f"greatest((SELECT max({quoted(sequence.column)})::bigint FROM {table.table.sql()}), {last})"
            )
            yield RestoreStep(
                entry=entry.id,
                says=f"Bring the sequence {sequence.sequence.text()} up to the highest value that is there.",
                sql=(
                    f"SELECT setval({literal(name)}::regclass, m.highest) FROM {name} s, (SELECT {highest} AS highest) m"
                    " WHERE m.highest > s.last_value OR m.highest = s.last_value AND m.highest > 0 AND NOT s.is_called"
                ),
                repeatable=False,
            )
