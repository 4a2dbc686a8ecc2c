"""The configuration as frozen types: every key there is, with its default. Reading TOML into them is the app's."""

import re
from typing import Literal, NewType

import msgspec

from rollbackd.core.gates import DataLossPolicy, Mode
from rollbackd.core.readings import Reduction

# Seconds; in TOML written as "90s", "15m", "2h" or "7d".
Duration = NewType("Duration", float)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: object) -> Duration:
    """Read a duration; raises ValueError with what would be right."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f'{text!r} is no duration; write a number with ms, s, m, h or d, as in "15m"')
    return Duration(float(found[1]) * _UNITS[found[2]])


class SecretReference(str):
    """Where a secret is found: `file:NAME` (a systemd credential), `file:/absolute/path` or `env:NAME`. Never the secret."""

    @classmethod
    def parse(cls, text: object) -> "SecretReference":
        """Read a reference; raises ValueError without repeating a text that may be the secret itself."""
        if not isinstance(text, str) or not re.fullmatch(r"(file|env):.+", text):
            raise ValueError('a secret is given by reference: "file:/path", "file:CREDENTIAL" or "env:NAME"')
        return cls(text)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: unknown keys are refused."""


class Server(Section, frozen=True, kw_only=True):
    """Where the daemon listens, and how much it takes at once."""

    listen: str = "127.0.0.1:8765"
    max_body_bytes: int = 1_048_576
    max_waiting_deliveries: int = 10_000
    max_connections: int = 512


class Store(Section, frozen=True, kw_only=True):
    """The embedded store's folder, and how long what happened is kept."""

    directory: str = "/var/lib/rollbackd"
    keep_deliveries: Duration = Duration(30 * 86400)
    keep_measurements: Duration = Duration(7 * 86400)


class Logging(Section, frozen=True, kw_only=True):
    """`auto` is console on a terminal and JSON otherwise."""

    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Hook(Section, frozen=True, kw_only=True):
    """One sender. `secrets` may be several, so that a key can be rotated; `file` names a hook file of your own."""

    secrets: tuple[SecretReference, ...] = ()
    file: str = ""


class Notify(Section, frozen=True, kw_only=True):
    """Announcements are POSTed as JSON to `url`; empty announces in the log alone."""

    url: SecretReference | None = None
    timeout: Duration = Duration(10)


class Database(Section, frozen=True, kw_only=True):
    """The guarded database. `url` holds no password; the backup role may differ from the one that migrates."""

    url: str
    password: SecretReference | None = None
    backup_user: str = ""
    backup_password: SecretReference | None = None
    binaries: str = ""
    connect_timeout: Duration = Duration(5)


class Migrations(Section, frozen=True, kw_only=True):
    """The target's own Alembic environment.

    `url` says how env.py comes by the database: `own` (it knows), `option` (sqlalchemy.url of the ini file is set) or
    `environment:NAME`. `driver` is the SQLAlchemy driver for the latter two.
    """

    directory: str
    ini: str = "alembic.ini"
    section: str = "alembic"
    python: tuple[str, ...]
    url: str = "own"
    driver: str = "psycopg"
    environment: dict[str, str] = {}
    secret_environment: dict[str, SecretReference] = {}
    x: tuple[str, ...] = ()
    version_table: str = "alembic_version"
    version_table_schema: str = ""
    lock_timeout: Duration = Duration(3)
    statement_timeout: Duration = Duration(300)
    lock_attempts: int = 5
    start_timeout: Duration = Duration(60)
    prestart: bool = True


class Scratch(Section, frozen=True, kw_only=True):
    """The server on which proofs restore and rehearsals run. An empty `url` means the guarded server itself, where
    `same_server` allows it. `pass_secrets` names entries of `migrations.secret_environment` that rehearsals may have too.
    """

    url: str = ""
    password: SecretReference | None = None
    same_server: bool = False
    pass_secrets: tuple[str, ...] = ()


class Rehearsing(Section, frozen=True, kw_only=True):
    """How the way back is rehearsed. `auto` copies everything up to `full_up_to` bytes of database, else the schema, and a
    sample of rows where the schema alone can't tell. `none` rehearses nothing, and then a person answers for it.
    """

    depth: Literal["auto", "schema", "sample", "full", "none"] = "auto"
    full_up_to: int = 256 * 1024 * 1024
    sample_rows: int = 200
    sample_bytes: int = 64 * 1024 * 1024
    timeout: Duration = Duration(600)


class Backup(Section, frozen=True, kw_only=True):
    """Where backups go and how long they stay. `command` takes a backup elsewhere and prints its reference as JSON."""

    directory: str = ""
    command: tuple[str, ...] = ()
    compression: str = "gzip:1"
    keep: Duration = Duration(14 * 86400)
    keep_at_least: int = 3
    reuse_within: Duration = Duration(0)
    dump_timeout: Duration = Duration(4 * 3600)
    proof_timeout: Duration = Duration(4 * 3600)
    count_budget: Duration = Duration(300)


class Archive(Section, frozen=True, kw_only=True):
    """Archives inside the guarded database: how long they stay, and how long a lock may last for making one."""

    keep: Duration = Duration(365 * 86400)
    lock_budget: Duration = Duration(5)


class FreezeWindow(Section, frozen=True, kw_only=True):
    """A stretch in which automation waits for a person; RFC 3339 times."""

    since: str
    until: str
    why: str


class Policy(Section, frozen=True, kw_only=True):
    """What may be done by itself. An empty value means the environment's default (see `config/rollbackd.toml`)."""

    mode: Mode | None = None
    approval_required: bool | None = None
    approve_in_advance: bool = False
    incident_required: bool | None = None
    data_loss: DataLossPolicy = DataLossPolicy.ARCHIVED
    backup_level: int = 4
    confirm_for: Duration = Duration(10)
    cool_down: Duration = Duration(600)
    max_rollbacks_a_day: int = 3
    approval_expires: Duration = Duration(4 * 3600)
    bake_time: Duration = Duration(30 * 60)
    start_grace: Duration = Duration(120)
    watch_after_rollback: Duration = Duration(10)
    investigate_for: Duration = Duration(15 * 60)
    after_investigation: Literal["ask", "roll_back"] = "ask"
    ways_back: tuple[Literal["leave_schema", "release_first", "stop_writes"], ...] = (
        "leave_schema",
        "release_first",
        "stop_writes",
    )
    checksums: tuple[str, ...] = ()
    restore_lost: Literal["", "automatic", "ask"] = ""
    unsafe_migrations: Literal["go", "warn", "stop"] = "warn"
    freeze: tuple[FreezeWindow, ...] = ()


class Probe(Section, frozen=True, kw_only=True):
    """An HTTP probe: how often, how long, and how many in a row settle it."""

    name: str
    url: str
    interval: Duration = Duration(5)
    timeout: Duration = Duration(3)
    failures: int = 3
    successes: int = 2
    expect_status: tuple[int, ...] = (200,)
    expect_text: str = ""


class Prometheus(Section, frozen=True, kw_only=True):
    """A Prometheus, or what answers as one does. Its URL may have a path, as behind a proxy; TLS is checked by the system's
    certificates.
    """

    url: str
    token: SecretReference | None = None
    timeout: Duration = Duration(5)


class Metric(Section, frozen=True, kw_only=True):
    """A query that Prometheus is asked while a deployment is watched, and from which values on it speaks against it.

    `query` has `$service` and its like in quotes (see `core/promql.py`). Without a `window` it is asked for one moment; with
    one, for each `step` in it, and `reduce` makes one number of them. So many `readings` in a row settle it. `stale_after` is
    how old its newest sample may be; "0s" doesn't look. `before` is how long before the start of the deploy the same is
    asked, to see what was so already. With `times_before` the limits are multiples of that value, and nothing up to
    `at_least` is past them.
    """

    name: str
    query: str
    category: Literal["errors", "performance", "availability"] = "performance"
    degraded: float | None = None
    critical: float | None = None
    side: Literal["above", "below"] = "above"
    times_before: bool = False
    at_least: float | None = None
    window: Duration = Duration(0)
    step: Duration = Duration(15)
    reduce: Reduction = Reduction.MEAN
    readings: int = 3
    interval: Duration = Duration(15)
    stale_after: Duration = Duration(120)
    before: Duration = Duration(60)


class Command(Section, frozen=True, kw_only=True):
    """A command and how its effect is observed. `{version}` in an argument stands for the release; there is no shell."""

    command: tuple[str, ...]
    done_when: tuple[str, ...]
    timeout: Duration = Duration(120)


class DeploymentCommands(Section, frozen=True, kw_only=True):
    """How the application is stopped and how a release of it is started.

    `tolerates_unknown_stamp` where a release starts over a version table that names a revision it doesn't know.
    `application_name` begins the names of its database sessions; empty means every client but rollbackd.
    """

    stop: Command | None = None
    start: Command | None = None
    environment: dict[str, str] = {}
    tolerates_unknown_stamp: bool = False
    application_name: str = ""


class Check(Section, frozen=True, kw_only=True):
    """A query of yours that must return no row after a rollback."""

    name: str
    sql: str
    timeout: Duration = Duration(30)


class Counting(Section, frozen=True, kw_only=True):
    """The budget for counting rows while a deployment is watched; what doesn't fit is an estimate and called one."""

    budget: Duration = Duration(10)
    most_tables: int = 500


class Target(Section, frozen=True, kw_only=True):
    """One database under guard."""

    name: str
    service: str
    environment: str
    database: Database
    migrations: Migrations
    scratch: Scratch = Scratch()
    rehearsal: Rehearsing = Rehearsing()
    backup: Backup = Backup()
    archive: Archive = Archive()
    policy: Policy = Policy()
    probes: tuple[Probe, ...] = ()
    prometheus: Prometheus | None = None
    metrics: tuple[Metric, ...] = ()
    deployment: DeploymentCommands = DeploymentCommands()
    checks: tuple[Check, ...] = ()
    counting: Counting = Counting()

    @property
    def is_production(self) -> bool:
        """Production environments start in shadow and need an approval and an incident record."""
        return self.environment.lower() in ("production", "prod", "live")

    @property
    def mode(self) -> Mode:
        """The policy's mode, or the environment's default."""
        if self.policy.mode is not None:
            return self.policy.mode
        return Mode.SHADOW if self.is_production else Mode.AUTOMATIC

    @property
    def approval_required(self) -> bool:
        """Whether another identity must approve; `approve_in_advance` is for automatic runs that lose nothing."""
        return self.is_production if self.policy.approval_required is None else self.policy.approval_required

    @property
    def incident_required(self) -> bool:
        """Whether a run needs an incident record."""
        return self.is_production if self.policy.incident_required is None else self.policy.incident_required

    @property
    def brings_back(self) -> bool:
        """Whether rows that a migration took away go back into their tables by themselves, or wait for a person."""
        return (
            not self.is_production
            if not self.policy.restore_lost
            else self.policy.restore_lost == "automatic"
        )

    @property
    def backs_up(self) -> bool:
        """Whether a way to take a backup is configured."""
        return bool(self.backup.directory or self.backup.command)


class Settings(Section, frozen=True, kw_only=True):
    """The whole configuration file."""

    targets: tuple[Target, ...]
    server: Server = Server()
    store: Store = Store()
    logging: Logging = Logging()
    hooks: dict[str, Hook] = {}
    notify: Notify = Notify()
    prometheus: Prometheus | None = None
    matrix: str = ""

    def prometheus_of(self, target: Target) -> Prometheus | None:
        """The server of a target's metrics: its own, or the one of all."""
        return target.prometheus or self.prometheus

    def target(self, name: str) -> Target | None:
        """The target of this name."""
        return next((target for target in self.targets if target.name == name), None)
