"""Reading the configuration: TOML to settings, and every fault that can be seen without asking the world."""

import math
import os
import re
import tomllib
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from rollbackd.adapters.secrets import read_secret
from rollbackd.app.decoding import decode_all
from rollbackd.core.matrix import Matrix, load_matrix
from rollbackd.core.promql import template_faults
from rollbackd.errors import ConfigurationError
from rollbackd.intake.authentication import prepare_secret
from rollbackd.intake.hooks import Hook, load_hook
from rollbackd.resources import resource
from rollbackd.settings import (
    Metric,
    Migrations,
    Policy,
    Probe,
    Prometheus,
    SecretReference,
    Settings,
    Target,
)

SOCKET_NAME = "rollbackd.sock"
# 108 in sun_path, the last of them zero (unix(7)).
LONGEST_SOCKET_PATH = 107
# Prometheus itself answers no more than this for each series.
MOST_STEPS = 11_000
SHORTEST_INTERVAL_S = 0.1
DEFAULT_PATH = Path("/etc/rollbackd/rollbackd.toml")
LoadedHooks = dict[str, tuple[Hook, tuple[bytes, ...]]]


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """The settings with what they refer to: the proved matrix and the proved hooks."""

    settings: Settings
    matrix: Matrix
    folder: Path


def load_configuration(path: Path) -> Configuration:
    """Read and check a configuration file.

    Raises:
        ConfigurationError: with every fault found, each with its path and what would be right.
    """
    problems: list[str] = []
    settings = _read_settings(path, problems)
    matrix: Matrix | None = None
    if settings is not None:
        problems += _socket_checks(path.parent / settings.store.directory / SOCKET_NAME)
        try:
            matrix = load_configured_matrix(settings, path.parent)
        except ConfigurationError as error:
            problems += error.problems
    if problems or settings is None or matrix is None:
        raise ConfigurationError(problems)
    return Configuration(settings=settings, matrix=matrix, folder=path.parent)


def _socket_checks(socket: Path) -> list[str]:
    if len(os.fsencode(socket)) <= LONGEST_SOCKET_PATH:
        return []
    return [
        f"store.directory: {socket} is too long for a Unix socket, whose path may have {LONGEST_SOCKET_PATH} bytes: take a"
        " shorter folder"
    ]


def load_settings(path: Path) -> Settings:
    """Read the TOML alone, strictly; see `load_configuration`."""
    problems: list[str] = []
    settings = _read_settings(path, problems)
    if problems or settings is None:
        raise ConfigurationError(problems)
    return settings


def _read_settings(path: Path, problems: list[str]) -> Settings | None:
    """The settings as far as they can be made out; with problems, they are good for finding more of them alone."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{path}: can't be read: {error.strerror}")
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path}: is no TOML: {error}")
        return None
    settings = decode_all(document, Settings, "", problems)
    if settings is None:
        return None
    assert isinstance(settings, Settings)
    problems += _cross_checks(settings)
    return _with_servers(settings)


def _with_servers(settings: Settings) -> Settings:
    """Each target with the server of its metrics, its own or the one of all: so a change of the latter changes the target."""
    targets = tuple(
        msgspec.structs.replace(target, prometheus=settings.prometheus_of(target))
        for target in settings.targets
    )
    return msgspec.structs.replace(settings, targets=targets)


def load_configured_matrix(settings: Settings, folder: Path) -> Matrix:
    """Load and prove the configured matrix, or the shipped one."""
    path = folder / settings.matrix if settings.matrix else resource("config", "decision-matrix.toml")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError([f"matrix: {path} can't be read: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"matrix: {path} is no TOML: {error}"]) from None
    return load_matrix(document, path.name)


def load_hooks(configuration: Configuration) -> LoadedHooks:
    """Load, prove and key every configured hook.

    Raises:
        ConfigurationError: with every fault of every hook.
    """
    problems: list[str] = []
    loaded: LoadedHooks = {}
    for name, settings in configuration.settings.hooks.items():
        path = configuration.folder / settings.file if settings.file else resource("hooks", f"{name}.toml")
        try:
            hook = load_hook(name, path)
        except ConfigurationError as error:
            problems += error.problems
            continue
        secrets = []
        for index, reference in enumerate(settings.secrets):
            try:
                secrets.append(prepare_secret(hook.file.authentication, read_secret(reference)))
            except ConfigurationError as error:
                problems += [f"hooks.{name}.secrets[{index}]: {problem}" for problem in error.problems]
            except ValueError as error:
                problems.append(f"hooks.{name}.secrets[{index}]: {error}")
        loaded[name] = (hook, tuple(secrets))
    if problems:
        raise ConfigurationError(problems)
    return loaded


def check_secrets(configuration: Configuration) -> None:
    """Read every other secret that the configuration refers to, once, so that a fault shows at the start.

    Raises:
        ConfigurationError: with the path of each that isn't there, is empty or may be read by everybody.
    """
    settings = configuration.settings
    references: dict[str, SecretReference | None] = {"notify.url": settings.notify.url}
    references["prometheus.token"] = settings.prometheus.token if settings.prometheus else None
    for index, target in enumerate(settings.targets):
        path = f"targets[{index}]"
        if target.prometheus is not None and target.prometheus != settings.prometheus:
            references[f"{path}.prometheus.token"] = target.prometheus.token
        references[f"{path}.database.password"] = target.database.password
        references[f"{path}.database.backup_password"] = target.database.backup_password
        references[f"{path}.scratch.password"] = target.scratch.password
        for name, given in target.migrations.secret_environment.items():
            references[f"{path}.migrations.secret_environment.{name}"] = given
    problems: list[str] = []
    for path, reference in references.items():
        if reference is not None:
            try:
                read_secret(reference)
            except ConfigurationError as error:
                problems += [f"{path}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigurationError(problems)


def load_parts_of(configuration: Configuration) -> LoadedHooks:
    """Everything beside the file itself that the daemon needs: hooks and secrets, with every fault of both.

    Raises:
        ConfigurationError: with every fault.
    """
    problems: list[str] = []
    hooks: LoadedHooks = {}
    try:
        hooks = load_hooks(configuration)
    except ConfigurationError as error:
        problems += error.problems
    try:
        check_secrets(configuration)
    except ConfigurationError as error:
        problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return hooks


def _cross_checks(settings: Settings) -> list[str]:
    problems: list[str] = []
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}", settings.server.listen):
        problems.append('server.listen: an address and a port are expected, as in "127.0.0.1:8765"')
    elif int(settings.server.listen.rpartition(":")[2]) > 65_535:
        problems.append("server.listen: a port is at most 65535")
    problems += [
        f"server.{name}: at least 1; nothing could be received"
        for name in ("max_body_bytes", "max_waiting_deliveries", "max_connections")
        if getattr(settings.server, name) < 1
    ]
    for name, hook in settings.hooks.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
            problems.append(f"hooks.{name}: a hook's name is part of a URL: small letters, digits, - and _")
        if not hook.secrets:
            problems.append(f"hooks.{name}.secrets: at least one is needed; nothing unauthenticated is taken")
    if not settings.targets:
        problems.append("targets: at least one [[targets]] is needed")
    if settings.prometheus is not None:
        problems += _prometheus_checks(settings.prometheus, "prometheus")
    seen: set[str] = set()
    for index, target in enumerate(settings.targets):
        path = f"targets[{index}]"
        if target.metrics and settings.prometheus_of(target) is None:
            problems.append(f"{path}.metrics: no server is asked for them: add [prometheus] with its 'url'")
        if target.name in seen:
            problems.append(f"{path}.name: {target.name!r} is taken by another target")
        seen.add(target.name)
        problems += [f"{path}.{problem}" for problem in _target_checks(target)]
    return problems


def _target_checks(target: Target) -> list[str]:
    problems: list[str] = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", target.name):
        problems.append("name: letters, digits, '-', '_' and '.' are allowed; it names folders and metrics")
    problems += _url_checks(target.database.url, "database.url")
    if target.scratch.url:
        problems += _url_checks(target.scratch.url, "scratch.url")
    problems += _migrations_checks(target.migrations)
    problems += _backup_checks(target)
    problems += _rehearsal_checks(target)
    problems += _policy_checks(target.policy)
    problems += _probe_checks(target.probes)
    if target.prometheus is not None:
        problems += _prometheus_checks(target.prometheus, "prometheus")
    problems += _metrics_checks(target)
    for name in ("stop", "start"):
        command = getattr(target.deployment, name)
        if command is not None and not (command.command and command.done_when):
            problems.append(
                f"deployment.{name}: 'command' does it and 'done_when' looks whether it is done; both are needed"
            )
    return problems


def _rehearsal_checks(target: Target) -> list[str]:
    problems: list[str] = []
    settings, scratch = target.rehearsal, target.scratch
    problems += [
        f"rehearsal.{name}: can't be negative"
        for name in ("full_up_to", "sample_rows", "sample_bytes")
        if getattr(settings, name) < 0
    ]
    if settings.timeout <= 0:
        problems.append("rehearsal.timeout: has to be longer than nothing")
    unknown = sorted(set(scratch.pass_secrets) - set(target.migrations.secret_environment))
    problems += [f"scratch.pass_secrets: {name} isn't in migrations.secret_environment" for name in unknown]
    return problems


def _migrations_checks(migrations: Migrations) -> list[str]:
    problems: list[str] = []
    if not migrations.python:
        problems.append(
            'migrations.python: the interpreter of the migrations is needed, as in ["/srv/shop/venv/bin/python"]'
        )
    from_environment = re.fullmatch(r"environment:[A-Za-z_]\w*", migrations.url)
    if migrations.url not in ("own", "option") and not from_environment:
        problems.append('migrations.url: "own", "option" or "environment:NAME"')
    if not Path(migrations.directory).is_absolute():
        problems.append(f"migrations.directory: {migrations.directory!r} must be an absolute path")
    return problems


def _backup_checks(target: Target) -> list[str]:
    problems: list[str] = []
    backup, level = target.backup, target.policy.backup_level
    if backup.directory and not Path(backup.directory).is_absolute():
        problems.append(f"backup.directory: {backup.directory!r} must be an absolute path")
    if not target.backs_up:
        problems.append(
            "backup: set 'directory' (pg_dump) or 'command' (a reference); nothing is rolled back without a backup"
        )
    if not re.fullmatch(r"(gzip|lz4|zstd):\d{1,2}|none", backup.compression):
        problems.append('backup.compression: "gzip:1", "lz4:1", "zstd:3" or "none"')
    if not 0 <= level <= 5:
        problems.append(
            "policy.backup_level: from 0 to 5; L4 is a restored backup with the counts of its own snapshot"
        )
    elif level > 2 and not (backup.command or target.scratch.url or target.scratch.same_server):
        problems.append(
            f"policy.backup_level: L{level} needs a place to restore: set 'scratch.url', or allow the guarded"
            " server with 'scratch.same_server = true'"
        )
    return problems


def _policy_checks(policy: Policy) -> list[str]:
    problems: list[str] = []
    if policy.investigate_for <= 0:
        problems.append("policy.investigate_for: has to be longer than nothing")
    if policy.max_rollbacks_a_day < 0:
        problems.append("policy.max_rollbacks_a_day: can't be negative")
    if not policy.ways_back:
        problems.append("policy.ways_back: name at least one of leave_schema, release_first, stop_writes")
    problems += [
        f"policy.checksums: {name!r} is no table; write schema.table"
        for name in policy.checksums
        if name.count(".") != 1
    ]
    for index, freeze in enumerate(policy.freeze):
        path = f"policy.freeze[{index}]"
        try:
            since, until = datetime.fromisoformat(freeze.since), datetime.fromisoformat(freeze.until)
        except ValueError:
            problems.append(f"{path}: times are written as 2026-12-24T00:00:00Z")
            continue
        if since.tzinfo is None or until.tzinfo is None:
            problems.append(f"{path}: times need a zone, as in 2026-12-24T00:00:00Z")
        elif since >= until:
            problems.append(f"{path}: ends before it begins")
    return problems


def _probe_checks(probes: tuple[Probe, ...]) -> list[str]:
    problems: list[str] = []
    names = [probe.name for probe in probes]
    for index, probe in enumerate(probes):
        parts = urlsplit(probe.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            problems.append(f"probes[{index}].url: an http or https URL is expected")
        if names.count(probe.name) > 1:
            problems.append(f"probes[{index}].name: {probe.name!r} stands twice")
        if probe.failures < 1 or probe.successes < 1:
            problems.append(f"probes[{index}]: 'failures' and 'successes' count from 1")
    return problems


def _prometheus_checks(server: Prometheus, path: str) -> list[str]:
    problems: list[str] = []
    parts = urlsplit(server.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        problems.append(
            f'{path}.url: an http or https URL without a query is expected, as in "http://127.0.0.1:9090"'
        )
    if parts.username is not None or parts.password is not None:
        problems.append(
            f'{path}.url: holds a login; put a bearer token in a file and refer to it: token = "file:/path"'
        )
    if server.timeout <= 0:
        problems.append(f"{path}.timeout: has to be longer than nothing")
    return problems


def _metrics_checks(target: Target) -> list[str]:
    problems: list[str] = []
    names = [probe.name for probe in target.probes] + [metric.name for metric in target.metrics]
    for index, metric in enumerate(target.metrics):
        path = f"metrics[{index}]"
        if names.count(metric.name) > 1:
            problems.append(f"{path}.name: {metric.name!r} stands twice among probes and metrics")
        problems += [f"{path}.query: {fault}" for fault in template_faults(metric.query)]
        problems += [f"{path}.{problem}" for problem in _limits_checks(metric)]
        if metric.readings < 1:
            problems.append(f"{path}.readings: counts from 1")
        if metric.interval < SHORTEST_INTERVAL_S:
            problems.append(f"{path}.interval: at least 100ms; no Prometheus has anything new before")
        if metric.window and not 0 < metric.step <= metric.window:
            problems.append(f"{path}.step: has to be longer than nothing, and no longer than 'window'")
        elif metric.window and metric.window / metric.step > MOST_STEPS:
            problems.append(f"{path}.step: a window has at most {MOST_STEPS:,} of them")
    return problems


def _limits_checks(metric: Metric) -> list[str]:
    problems: list[str] = []
    degraded, critical = metric.degraded, metric.critical
    if degraded is None and critical is None:
        problems.append("critical: set 'critical' or 'degraded' to a value; else the metric decides nothing")
    if metric.category != "performance" and degraded is not None:
        problems.append(
            f"degraded: {metric.category} has no degrees: it fires from 'critical' on, or it doesn't"
        )
    for name in ("degraded", "critical", "at_least"):
        value = getattr(metric, name)
        if value is not None and not math.isfinite(value):
            problems.append(f"{name}: a number is expected")
        elif value is not None and metric.times_before and name != "at_least":
            if metric.side == "above" and value <= 1:
                problems.append(f"{name}: more than 1 is expected: so many times the value before the deploy")
            if metric.side == "below" and not 0 < value < 1:
                problems.append(
                    f"{name}: between 0 and 1 is expected: that part of the value before the deploy"
                )
    if degraded is not None and critical is not None:
        is_out_of_order = critical < degraded if metric.side == "above" else critical > degraded
        if is_out_of_order:
            problems.append(f"critical: {critical:g} is reached before 'degraded' at {degraded:g}")
    if metric.at_least is not None and metric.side == "below":
        problems.append('at_least: goes with the side "above" alone')
    return problems


def _url_checks(text: str, path: str) -> list[str]:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        return [f"{path}: a URL is expected, as in postgresql://role@host:5432/database"]
    if url.get_backend_name() not in ("postgresql", "postgres"):
        return [
            f"{path}: {url.get_backend_name()} isn't supported: up to now, rollbackd guards PostgreSQL alone"
        ]
    if url.password is not None or any("password" in name.lower() for name in url.query):
        return [f'{path}: holds a password; put it in a file and refer to it: password = "file:/path"']
    if not url.database or not url.username:
        return [f"{path}: role and database are needed, as in postgresql://role@host:5432/database"]
    return []
