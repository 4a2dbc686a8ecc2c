"""A backup on disk: a folder that either is complete, with its manifest, or isn't there."""

import contextlib
import hashlib
import os
import shutil
from datetime import datetime
from pathlib import Path

import msgspec

from rollbackd.core.records import BackupRecord, TableCount

MANIFEST = "manifest.json"
PROOF = "proof.json"
PARTIAL = ".partial-"


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a backup."""

    name: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is. Written last: a folder without one is no backup."""

    id: str
    target: str
    run: str
    purpose: str
    created_at: datetime
    tool: str
    server_version: int
    heads: tuple[str, ...]
    counts: tuple[TableCount, ...]
    files: tuple[FileEntry, ...]


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """To which level a backup was proved, when and how."""

    level: int
    at: datetime
    text: str


def complete(partial: Path, final: Path, manifest: Manifest) -> None:
    """Make a finished dump a backup: files to disk, manifest to disk, one rename, folder to disk."""
    for entry in manifest.files:
        sync(partial / entry.name)
    write_durably(partial / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    sync(partial)
    partial.rename(final)
    sync(final.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole after a power loss, or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(data)
    sync(beside)
    beside.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(name=path.name, size_bytes=path.stat().st_size, sha256=digest)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a backup folder; None where there is none or it is damaged."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


# A file's name, size, time of change and inode, of each file of a backup.
Stamp = tuple[tuple[str, int, int, int], ...]


def stamp(folder: Path) -> Stamp | None:
    """What the files of a backup look like from outside; None where one is missing."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    try:
        states = [(entry.name, (folder / entry.name).stat()) for entry in manifest.files]
    except OSError:
        return None
    return tuple((name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in states)


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there with its size and digest. Reads everything."""
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    try:
        return all(describe_file(folder / entry.name) == entry for entry in manifest.files)
    except OSError:
        return False


def record_of(folder: Path) -> BackupRecord | None:
    """A backup folder as a record; None where it is none."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    try:
        level = msgspec.json.decode((folder / PROOF).read_bytes(), type=Proof).level
    except (OSError, msgspec.DecodeError):
        level = 1
    return BackupRecord(
        id=manifest.id,
        target=manifest.target,
        run=manifest.run,
        purpose=manifest.purpose,
        created_at=manifest.created_at,
        location=str(folder),
        level=level,
        size_bytes=sum(entry.size_bytes for entry in manifest.files),
        heads=manifest.heads,
        counts=manifest.counts,
        tool=manifest.tool,
    )


def remove(folder: Path, root: Path) -> bool:
    """Remove a backup folder of `root`: its manifest first, so that what is left over is no backup.

    False where it isn't a folder of `root` itself (a link, somewhere else), and nothing was removed.
    """
    if folder.is_symlink() or folder.resolve().parent != root.resolve():
        return False
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)
    return True


def dumps(folder: Path) -> list[Path]:
    """The dump files of a backup."""
    return sorted(folder.glob("*.dump"))


def written(folder: Path) -> int:
    """Bytes of the dump files so far."""
    return sum(dump.stat().st_size for dump in dumps(folder))


def nearest(path: Path) -> Path:
    """The folder itself or the nearest one above it that can be seen."""
    for folder in (path, *path.parents):
        # A folder that may not be entered hides what is below it.
        with contextlib.suppress(OSError):
            if folder.is_dir():
                return folder
    return Path("/")
