"""A database's schema as plain values: one line of definition for each catalog object, and a digest of them all."""

import hashlib
import re

import msgspec

_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")


def quoted(name: str) -> str:
    """An identifier as SQL takes it, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


class TableName(msgspec.Struct, frozen=True, order=True):
    """A table (or another relation) as the catalog has it; never split at a dot, as names may hold one."""

    schema: str
    name: str

    def text(self) -> str:
        """`schema.table` for people, each part quoted only where SQL needs it."""
        return ".".join(part if _PLAIN.fullmatch(part) else quoted(part) for part in (self.schema, self.name))

    def sql(self) -> str:
        """`"schema"."table"` for statements."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"


class SchemaDifference(msgspec.Struct, frozen=True, kw_only=True):
    """What came, went and changed; each name is `kind schema.object`."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.added or self.removed or self.changed)

    def lines(self) -> list[str]:
        """One line a difference."""
        return (
            [f"+ {name}" for name in self.added]
            + [f"- {name}" for name in self.removed]
            + [f"~ {name}" for name in self.changed]
        )

    def summary(self, most: int = 4) -> str:
        """The first few differences in one line."""
        lines = self.lines()
        rest = f" and {len(lines) - most} more" if len(lines) > most else ""
        return ", ".join(lines[:most]) + rest


class Schema(msgspec.Struct, frozen=True):
    """Catalog objects of the user's schemas: name to definition."""

    objects: dict[str, str]

    def without_owners(self) -> "Schema":
        """Without owners and grants: what a copy on another server can be compared with."""
        kept = {n: d for n, d in self.objects.items() if not n.startswith(("owner of ", "grants on "))}
        return Schema(objects=kept)

    def fingerprint(self) -> str:
        """SHA-256 over all definitions, order-free."""
        digest = hashlib.sha256()
        for name in sorted(self.objects):
            digest.update(f"{name}\0{self.objects[name]}\0".encode())
        return digest.hexdigest()


def compare_schemas(before: Schema, after: Schema) -> SchemaDifference:
    """How `after` differs from `before`, by name, sorted."""
    old, new = before.objects, after.objects
    return SchemaDifference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
    )
