"""Which changes of a column's type keep every value, told by PostgreSQL's own names of the types (format_type)."""

import re

_SIZED = re.compile(
    r"(?P<name>[a-z ]+?)(?:\((?P<size>\d+)(?:,(?P<scale>\d+))?\))?(?P<rest> with(?:out)? time zone)?"
)
_INTEGERS = ("smallint", "integer", "bigint")


def keeps_values(old: str, new: str) -> bool:
    """Whether every value of the type `old` is one of `new`, and is read back as it was.

    Only what is surely so: for anything else the values are counted and archived.
    """
    if old == new:
        return True
    before, after = _SIZED.fullmatch(old), _SIZED.fullmatch(new)
    if before is None or after is None:
        return False
    name, wanted = before["name"], after["name"]
    size, room = before["size"], after["size"]
    if name in _INTEGERS:
        if wanted in _INTEGERS:
            return _INTEGERS.index(name) <= _INTEGERS.index(wanted)
        return wanted == "numeric" and room is None
    if name == "character varying" and wanted in ("text", "character varying"):
        return room is None or (size is not None and int(size) <= int(room))
    if name == "text":
        return wanted == "character varying" and room is None
    if name == "numeric" and wanted == "numeric":
        if room is None:
            return True
        if size is None:
            return False
        scale, new_scale = int(before["scale"] or 0), int(after["scale"] or 0)
        # A larger scale adds noughts to each value: equal, and not the same to the letter, which numbers don't mind.
        return scale <= new_scale and int(size) - scale <= int(room) - new_scale
    if name == "real":
        return wanted == "double precision"
    if name == "json":
        return wanted == "text"
    return (
        name == "timestamp"
        and wanted == "timestamp"
        and before["rest"] == after["rest"]
        and (room is None or (size is not None and int(size) <= int(room)))
    )
