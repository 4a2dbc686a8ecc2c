"""What goes into a row: for each column of a table what it may take just now, and the choice among that for one row."""

import enum
import math
from collections.abc import Mapping

import msgspec

from rollbackd.adapters.postgres.rows.tables import Column, Table
from rollbackd.core.made_up import Face, made_up, number_for, tame, wish


class Left(enum.Enum):
    """What isn't a value: left to the column's default; the row's own key."""

    DEFAULT = "default"
    OWN = "own"


Cell = str | Left | None
"""A value as text, or what isn't one: NULL, or left to others."""


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Columns whose values only go together, and what is possible for them."""

    columns: tuple[str, ...]
    options: tuple[tuple[Cell, ...], ...]
    refers: bool
    """Whether it holds a foreign key: several rows may well refer to the same one."""
    own: dict[str, str] = {}
    """Column to the column of the same row that it refers to."""


class Mood(enum.IntEnum):
    """How a row is tried, the most telling way first."""

    AS_WISHED = 0
    TAME = 1
    ONLY_VALUES = 2
    SPARSE = 3

    @classmethod
    def at(cls, attempt: int) -> "Mood":
        """The mood of an attempt, counted from 0."""
        return cls(0 if attempt < 8 else 1 if attempt < 16 else 2 if attempt < 20 else 3)


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A table with what its columns may take just now."""

    table: Table
    loose: tuple[Column, ...]
    blocks: tuple[Block, ...]
    rows: int

    def cells(
        self,
        row: int,
        mood: Mood = Mood.AS_WISHED,
        steps: Mapping[str, int] | None = None,
        asked: Mapping[str, Cell] | None = None,
        valued: bool = False,
    ) -> dict[str, Cell]:
        """Row number `row`. `steps` moves columns on from what was refused, `asked` names values for some."""
        steps, asked = steps or {}, asked or {}
        if mood > Mood.TAME:
            asked = {}
        faces = {c.name: self._face(c, row, mood, valued) for c in self.table.free()}
        found: dict[str, Cell] = {}
        for column in self.loose:
            face, turn = faces[column.name]
            if column.name in asked:
                found[column.name] = asked[column.name]
            elif face is Face.NULL:
                found[column.name] = None
            elif face is Face.DEFAULT:
                found[column.name] = Left.DEFAULT
            else:
                number = self._number(column, row, turn, steps.get(column.name, 0))
                found[column.name] = made_up(column.kind, number if mood is Mood.AS_WISHED else tame(number))
        for block in self.blocks:
            found.update(zip(block.columns, self._chosen(block, row, faces, steps, asked), strict=True))
        return found

    def _face(self, column: Column, row: int, mood: Mood, valued: bool) -> tuple[Face, int]:
        wished = wish(row, self.rows, nullable=column.nullable, has_default=bool(column.default))
        if valued or mood is Mood.ONLY_VALUES:
            return Face.VALUE, row
        if mood is Mood.SPARSE and (column.default or column.nullable):
            return Face.DEFAULT if column.default else Face.NULL, row
        return wished.face, wished.turn

    def _number(self, column: Column, row: int, turn: int, step: int) -> int:
        if not step:
            return number_for(row, turn, column.kind, column.place)
        return (row if column.place else turn // 2) + step

    def _chosen(
        self,
        block: Block,
        row: int,
        faces: Mapping[str, tuple[Face, int]],
        steps: Mapping[str, int],
        asked: Mapping[str, Cell],
    ) -> tuple[Cell, ...]:
        def score(option: tuple[Cell, ...]) -> int:
            points = 0
            for name, cell in zip(block.columns, option, strict=True):
                if name in asked:
                    points += 3 * (cell == asked[name])
                points += _shows(cell) is faces[name][0]
            return points

        scores = [score(option) for option in block.options]
        highest = max(scores)
        best = [o for o, s in zip(block.options, scores, strict=True) if s == highest]
        placed = [self.table.columns[name] for name in block.columns if self.table.columns[name].place]
        turn = min(faces[name][1] for name in block.columns)
        if len(placed) == 1:
            number = number_for(row, turn, placed[0].kind, placed[0].place)
        elif placed:
            number = row
        else:
            number = turn // 2 if block.refers or len(best) > 8 else turn
        step = max(steps.get(name, 0) for name in block.columns)
        if step:
            number = (row if placed else number) + step
        # Neighbours among combinations share most of their values; a stride goes to different ones.
        stride = 1 if len(block.columns) == 1 or block.refers else _coprime(len(best))
        return best[number * stride % len(best)]

    def values_of(self, name: str) -> list[str]:
        """What the column could hold but NULL."""
        for column in self.loose:
            if column.name == name:
                return [made_up(column.kind, tame(0)) or ""]
        return [
            cell
            for block in self.blocks
            if name in block.columns
            for option in block.options
            if isinstance(cell := option[block.columns.index(name)], str)
        ]


def _shows(cell: Cell) -> Face:
    if cell is None:
        return Face.NULL
    return Face.DEFAULT if cell is Left.DEFAULT else Face.VALUE


def _coprime(length: int) -> int:
    """About the golden section of a length, with no divisor in common, so that steps of it meet every place."""
    return next((n for n in range(max(1, length * 618 // 1000), length) if math.gcd(n, length) == 1), 1)
