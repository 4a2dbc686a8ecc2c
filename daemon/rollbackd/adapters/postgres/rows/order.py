"""The order in which tables are filled: those that are referred to before those that refer to them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rollbackd.adapters.postgres.rows.tables import Table
from rollbackd.core.schema import TableName


def in_groups(tables: Mapping[TableName, Table]) -> list[list[Table]]:
    """Tables in the order in which they can be filled; those that refer to each other in a circle stand together."""
    parents = {name: sorted({k.parent for k in table.keys} - {name}) for name, table in tables.items()}
    children: dict[TableName, list[TableName]] = defaultdict(list)
    for name in sorted(parents):
        for parent in parents[name]:
            children[parent].append(name)
    # Kosaraju: leaving order on one graph, then what is reachable on the reversed one.
    seen: set[TableName] = set()
    left: list[TableName] = []
    for name in sorted(parents):
        left += _leaving_order(name, children, seen)
    placed: set[TableName] = set()
    members = [_leaving_order(name, parents, placed) for name in reversed(left)]
    return [[tables[name] for name in sorted(group)] for group in members if group]


def _leaving_order(
    start: TableName, graph: Mapping[TableName, Sequence[TableName]], seen: set[TableName]
) -> list[TableName]:
    """Depth first, without recursion: chains of foreign keys may be longer than Python's stack."""
    if start in seen:
        return []
    seen.add(start)
    left = []
    stack = [(start, iter(graph.get(start, ())))]
    while stack:
        name, following = stack[-1]
        for other in following:
            if other not in seen:
                seen.add(other)
                stack.append((other, iter(graph.get(other, ()))))
                break
        else:
            left.append(name)
            stack.pop()
    return left


def within_a_circle(tables: Sequence[Table]) -> list[Table]:
    """The tables of one circle: each time the one that asks for the fewest of the others."""
    left = list(tables)
    ordered = []
    while left:
        names = {table.name for table in left}
        best = min(
            left, key=lambda t: (sum(t.required(k) for k in t.keys if k.parent in names - {t.name}), t.name)
        )
        left.remove(best)
        ordered.append(best)
    return ordered
