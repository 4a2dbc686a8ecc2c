"""Counting rows, or estimating them where the time is up, and naming a few by their keys."""

from collections.abc import Iterable
from typing import Any

import msgspec

from rollbackd.adapters.postgres.risks.asking import Asking, OutOfTimeError, UnknownError
from rollbackd.adapters.postgres.risks.tables import Table
from rollbackd.core.risks import Obstacle, RowsAtRisk
from rollbackd.core.schema import quoted

_LONGEST_KEY = 60

Finding = RowsAtRisk | Obstacle


class Counting:
    """Counts for what is at risk, and takes samples of at most `samples` keys."""

    def __init__(self, asking: Asking, samples: int) -> None:
        self._asking = asking
        self.samples = samples

    async def count(
        self, risk: RowsAtRisk, rows: str, where: str = "", table: Table | None = None, prefix: str = ""
    ) -> RowsAtRisk:
        """The risk with the number of the rows (`FROM …`, after a `prefix` such as WITH) that meet a condition.

        It is the planner's estimate where the time is up, and unknown for any other reason. With `table` it has a sample.
        """
        condition = f" WHERE {where}" if where else ""
        try:
            number = int((await self._asking.rows(f"{prefix}SELECT count(*) {rows}{condition}"))[0][0])
        except OutOfTimeError:
            return await self.estimate(risk, f"{rows}{condition}", prefix=prefix)
        except UnknownError as problem:
            return unknown(risk, str(problem))
        sample = await self.sample(table, rows, where) if table and number else ()
        return msgspec.structs.replace(risk, rows=number, sample=sample)

    async def estimate(
        self, risk: RowsAtRisk, rows: str, *, at_most: bool = False, prefix: str = ""
    ) -> RowsAtRisk:
        """The risk with the planner's number of the rows, `FROM … WHERE …`."""
        try:
            number = await self._asking.estimate(f"{prefix}SELECT {rows}")
        except UnknownError as problem:
            return unknown(risk, str(problem))
        return msgspec.structs.replace(risk, rows=number, exact=False, at_most=at_most)

    async def sample(
        self, table: Table, rows: str, where: str, *, alias: str = "", prefix: str = ""
    ) -> tuple[str, ...]:
        """A few primary keys as text; none where the table has no primary key or no time is left."""
        if not table.key or self.samples <= 0:
            return ()
        columns = [f"{alias}.{quoted(column)}" if alias else quoted(column) for column in table.key]
        numbers = ", ".join(str(number + 1) for number in range(len(columns)))
        condition = f" WHERE {where}" if where else ""
        keys = (
            f"SELECT DISTINCT {', '.join(columns)} {rows}{condition} ORDER BY {numbers} LIMIT {self.samples}"
        )
        names = [f"k{number}" for number in range(len(columns))]
        texts = ", ".join(f"{name}::text" for name in names)
        try:
            found = await self._asking.rows(
                f"{prefix}SELECT {texts} FROM ({keys}) AS keys({', '.join(names)})", aside=True
            )
        except UnknownError:
            return ()
        return tuple(_key_text(table.key, row) for row in found)


def unknown(risk: RowsAtRisk, why: str) -> RowsAtRisk:
    """The risk, uncounted for a reason."""
    return msgspec.structs.replace(risk, rows=-1, unknown=why)


def both_unknown(risk: RowsAtRisk, obstacle: Obstacle, why: str) -> list[Finding]:
    """A risk and the obstacle that goes with it, uncounted for the same reason."""
    return [unknown(risk, why), msgspec.structs.replace(obstacle, unknown=why)]


def _key_text(names: tuple[str, ...], values: Iterable[Any]) -> str:
    pairs = []
    for name, value in zip(names, values, strict=True):
        text = str(value)
        pairs.append(f"{name}={text if len(text) <= _LONGEST_KEY else text[: _LONGEST_KEY - 1] + '…'}")
    return pairs[0] if len(pairs) == 1 else f"({', '.join(pairs)})"
