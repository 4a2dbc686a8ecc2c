"""A backup and its proof, of a database of about 1 GB, beside PostgreSQL's own tools alone."""

import shutil
import time
from pathlib import Path

from figures import compared, figure
from ground import Ground

from rollbackd.adapters.backup.backups import RESTORE_JOBS
from rollbackd.core.records import BackupRecord
from rollbackd.ports import Backups, Progress

TABLES, ROWS = 4, 1_600_000
MOST_ROUNDS = 3
DUMP_AIM, PROOF_AIM = 1.05, 1.3
TIMEOUT_S = 600.0
REVISIONS = (("first", "SELECT 1", "SELECT 1"),)


async def backups(rounds: int) -> None:
    """Like for like: without compression, and with as many jobs as the proof restores with."""
    async with Ground.stand() as ground:
        project = ground.project(REVISIONS)
        database = ground.database(*_tables(), "VACUUM (FREEZE, ANALYZE)", head="first")
        size = int(ground.sql(database, "SELECT pg_database_size(current_database())")[0][0])
        dumps, bare_dumps, proofs, bare_restores = [], [], [], []
        async with ground.wired(database, project) as wired:
            for _ in range(min(rounds, MOST_ROUNDS)):
                backup, took = await _take(wired.guarded.backups)
                dumps.append(took)
                alone = ground.folder / "alone.dump"
                bare_dumps.append(await _pg_dump(ground, database, alone))
                ground.sql("postgres", "CHECKPOINT")
                proofs.append(await _prove(wired.guarded.backups, backup))
                ground.sql("postgres", "CHECKPOINT")
                bare_restores.append(await _pg_restore(ground, alone))
                shutil.rmtree(backup.location)
                alone.unlink()
        of = {"database_bytes": size, "dump_bytes": backup.size_bytes}
        dump, restore = (
            "pg_dump -Fc -Z0 alone",
            f"pg_restore --jobs={RESTORE_JOBS} alone, database made before",
        )
        compared(
            "backup without compression, counted and digested",
            dumps,
            "s",
            dump,
            bare_dumps,
            aim_ratio=DUMP_AIM,
            **of,
        )
        compared(
            "proof to L4 of a backup without compression",
            proofs,
            "s",
            restore,
            bare_restores,
            aim_ratio=PROOF_AIM,
            **of,
        )
        async with ground.wired(database, project, compression="gzip:1") as wired:
            backup, took = await _take(wired.guarded.backups)
            of = {"database_bytes": size, "dump_bytes": backup.size_bytes}
            compared("backup, as configured by default (gzip:1)", [took], "s", dump, bare_dumps, **of)
            proved = await _prove(wired.guarded.backups, backup)
            figure("proof to L4, as configured by default (gzip:1)", [proved], "s", **of)


def _tables() -> list[str]:
    """Rows that hardly compress, as the worst case of a database."""
    made = []
    for n in range(TABLES):
        made += [
            f"CREATE TABLE t{n} (id bigint, a text, b text, c text)",
            f"INSERT INTO t{n} SELECT g, md5(g::text), md5((g + {n})::text), md5((-g)::text)"
            f" FROM generate_series(1, {ROWS}) g",
            f"ALTER TABLE t{n} ADD PRIMARY KEY (id)",
        ]
    return made


async def _take(backups: Backups) -> tuple[BackupRecord, float]:
    began = time.monotonic()
    backup = await backups.take("bench", "bench", timeout_s=TIMEOUT_S, on_progress=_nobody)
    return backup, time.monotonic() - began


async def _prove(backups: Backups, backup: BackupRecord) -> float:
    began = time.monotonic()
    proved = await backups.prove(backup, level=4, timeout_s=TIMEOUT_S, on_progress=_nobody)
    took = time.monotonic() - began
    if proved.level != 4:
        raise RuntimeError(f"the backup is proved to L{proved.level}")
    return took


async def _pg_dump(ground: Ground, database: str, to: Path) -> float:
    options = ["--format=custom", "--compress=0", f"--file={to}"]
    return await _tool(ground, "pg_dump", database, options)


async def _pg_restore(ground: Ground, dump: Path) -> float:
    database = ground.database()
    options = ["--exit-on-error", "--no-owner", "--no-privileges", f"--jobs={RESTORE_JOBS}"]
    took = await _tool(ground, "pg_restore", database, [*options, str(dump)])
    ground.drop(database)
    return took


async def _tool(ground: Ground, tool: str, database: str, options: list[str]) -> float:
    argv = [str(ground.postgres.bin_directory / tool), f"--dbname={ground.postgres.url(database)}", *options]
    return await ground.process(argv, {"LC_ALL": "C"}, ground.folder)


async def _nobody(_: Progress) -> None:
    """Nobody looks at the progress."""
