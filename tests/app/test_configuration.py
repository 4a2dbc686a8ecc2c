"""The configuration: every fault at once, each with its path and what would be right."""

import base64
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rollbackd.app.configuration import check_secrets, load_configuration, load_parts_of, load_settings
from rollbackd.errors import ConfigurationError
from rollbackd.settings import Duration

DAEMON = Path(__file__).parents[2] / "daemon"
GOOD = """
[server]
listen = "127.0.0.1:0"
[store]
directory = "store"
[[targets]]
name = "shop"
service = "shop"
environment = "staging"
[targets.database]
url = "postgresql://shop@127.0.0.1:1/shop"
[targets.migrations]
directory = "/srv/shop"
python = ["/srv/shop/bin/python"]
[targets.scratch]
same_server = true
[targets.backup]
directory = "/srv/backups"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "rollbackd.toml"
    path.write_text(text)
    return path


def problems_of(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        load_configuration(write(folder, text))
    return refused.value.problems


def test_a_good_configuration_has_no_problem(tmp_path: Path) -> None:
    configuration = load_configuration(write(tmp_path, GOOD))
    assert configuration.settings.targets[0].policy.bake_time == Duration(1800)
    assert load_parts_of(configuration) == {}


def test_every_fault_of_every_kind_is_named_at_once(tmp_path: Path) -> None:
    text = GOOD.replace('listen = "127.0.0.1:0"', 'listn = "x"\nlisten = "nowhere"\nmax_connections = 0')
    text = text.replace("postgresql://shop@", "postgresql://shop:hunter2@").replace(
        "same_server = true", "same_server = 1"
    )
    text = 'matrix = "nosuch.toml"\nbake_tme = 1\n' + text.replace('python = ["/srv/shop/bin/python"]', "")
    text += '[targets.policy]\nbake_time = 15\nmode = "atomatic"\n[[targets.probes]]\nname = "p"\nurl = "ftp://x"\n'
    text += GOOD.partition("[[targets]]")[1] + GOOD.partition("[[targets]]")[2].replace(
        "/srv/backups", "relative"
    )
    text += "[targets.policy]\nbackup_level = 9\n"
    found = "\n".join(problems_of(tmp_path, text))
    for path in (
        "bake_tme: unknown key", "server.listn: unknown key; did you mean 'listen'?", "targets[0].migrations.python: is required",
        "targets[0].scratch.same_server: Expected `bool`, got `int`", "targets[0].policy.bake_time: 15 is no duration",
        "targets[0].policy.mode: Invalid enum value 'atomatic'",
    ):  # fmt: skip
        assert path in found
    assert "hunter2" not in found


def test_faults_that_only_show_together_are_named_at_once(tmp_path: Path) -> None:
    text = GOOD.replace(
        'listen = "127.0.0.1:0"', 'listn = "x"\nlisten = "nowhere"\nmax_connections = 0\nmax_body_bytes = -1'
    )
    text = 'matrix = "nosuch.toml"\n' + text.replace("postgresql://shop@", "postgresql://shop:hunter2@")
    text = text.replace('directory = "/srv/shop"', 'directory = "shop"\nurl = "envronment:X"')
    text += '[[targets.probes]]\nname = "p"\nurl = "ftp://x"\nfailures = 0\n[hooks.Shop]\n'
    text += '[targets.policy]\nbackup_level = 9\n[[targets.policy.freeze]]\nsince = "tomorrow"\nuntil = "later"\nwhy = ""\n'
    found = "\n".join(
        problems_of(tmp_path, text.replace("[hooks.Shop]\n", "") + "[hooks.Shop]\nsecrets = []\n")
    )
    for path in (
        "matrix: ", "server.listn: unknown key; did you mean 'listen'?", "server.listen: an address and a port", "server.max_connections: at least 1",
        "server.max_body_bytes: at least 1", "targets[0].database.url: holds a password", "targets[0].migrations.url: ",
        "targets[0].migrations.directory: 'shop' must be an absolute path", "targets[0].probes[0].url: ", "targets[0].probes[0]: 'failures'",
        "hooks.Shop: a hook's name", "hooks.Shop.secrets: at least one", "targets[0].policy.backup_level: from 0 to 5",
        "targets[0].policy.freeze[0]: times are written as",
    ):  # fmt: skip
        assert path in found
    assert "hunter2" not in found


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("postgresql://shop:hunter2@h/shop", "holds a password"),
        ("postgresql://shop@h/shop?password=hunter2", "holds a password"),
        ("postgresql://shop@h/shop?sslpassword=hunter2", "holds a password"),
        (
            "mysql://shop:hunter2@h/shop",
            "mysql isn't supported: up to now, rollbackd guards PostgreSQL alone",
        ),
        ("sqlite:///hunter2.db", "sqlite isn't supported"),
        ("postgresql://shop@h:port/shop", "a URL is expected"),
        ("hunter2", "a URL is expected"),
        ("postgresql://h/shop", "role and database are needed"),
        ("postgresql://shop@h", "role and database are needed"),
    ],
)
def test_a_database_that_cannot_be_guarded_is_refused_in_one_sentence_that_repeats_no_password(
    tmp_path: Path, url: str, fault: str
) -> None:
    found = problems_of(tmp_path, GOOD.replace("postgresql://shop@127.0.0.1:1/shop", url))
    assert len(found) == 1
    assert found[0].startswith("targets[0].database.url: ")
    assert fault in found[0]
    assert "hunter2" not in found[0]


@pytest.mark.parametrize("listen", ["", "8765", "127.0.0.1", "127.0.0.1:99999", "a b:1", "::1:80"])
def test_an_address_that_cannot_be_listened_on_is_refused(tmp_path: Path, listen: str) -> None:
    assert "server.listen" in problems_of(tmp_path, GOOD.replace("127.0.0.1:0", listen))[0]


@pytest.mark.parametrize("reference", ["hunter2", "", "vault:hunter2", "file:", 5])
def test_a_secret_that_stands_in_the_file_is_refused_and_not_repeated(
    tmp_path: Path, reference: object
) -> None:
    text = GOOD + f"[hooks.github]\nsecrets = [{reference!r}]\n"
    [problem] = problems_of(tmp_path, text)
    assert problem.startswith("hooks.github.secrets[0]: a secret is given by reference")
    assert "hunter2" not in problem


def test_every_secret_is_looked_for_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").write_text("hunter2")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "empty").touch(mode=0o600)
    monkeypatch.delenv("NOWHERE", raising=False)
    text = GOOD.replace(
        "[targets.migrations]",
        f'password = "file:{tmp_path}/open"\nbackup_password = "env:NOWHERE"\n[targets.migrations]',
    )
    text = text.replace(
        "[targets.scratch]", f'secret_environment = {{ KEY = "file:{tmp_path}/empty" }}\n[targets.scratch]'
    )
    text += f'[notify]\nurl = "file:{tmp_path}/gone"\n[hooks.github]\nsecrets = ["file:credential"]\n'
    configuration = load_configuration(write(tmp_path, text))
    with pytest.raises(ConfigurationError) as refused:
        load_parts_of(configuration)
    found = "\n".join(refused.value.problems)
    for fault in (
        "hooks.github.secrets[0]: the secret file", f"targets[0].database.password: the secret file {tmp_path}/open may be read by everybody: chmod o-r",
        "targets[0].database.backup_password: the environment variable NOWHERE is not set", "notify.url: the secret file",
        f"targets[0].migrations.secret_environment.KEY: the secret file {tmp_path}/empty is empty",
    ):  # fmt: skip
        assert fault in found
    assert "hunter2" not in found


def test_secrets_that_are_there_are_no_problem(tmp_path: Path) -> None:
    (tmp_path / "password").touch(mode=0o600)
    (tmp_path / "password").write_text("hunter2\n")
    text = GOOD.replace(
        "[targets.migrations]", f'password = "file:{tmp_path}/password"\n[targets.migrations]'
    )
    check_secrets(load_configuration(write(tmp_path, text)))


@pytest.mark.parametrize("secret", ["plain", "whsec_%%", "whsec_" + base64.b64encode(b"short").decode()])
def test_a_key_of_the_wrong_kind_is_refused_and_not_repeated(tmp_path: Path, secret: str) -> None:
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text(secret)
    configuration = load_configuration(
        write(tmp_path, GOOD + f'[hooks.rollbackd]\nsecrets = ["file:{tmp_path}/key"]\n')
    )
    with pytest.raises(ConfigurationError) as refused:
        load_parts_of(configuration)
    assert refused.value.problems[0].startswith("hooks.rollbackd.secrets[0]: ")
    assert secret not in str(refused.value).replace("whsec_ ", "")


@pytest.mark.parametrize(
    "text", ["", "targets = []", "targets = 5", "[[targets]]", "x = ", "\x00", 'targets = [5]\nserver = "x"']
)
def test_a_file_that_configures_nothing_is_refused_with_a_path(tmp_path: Path, text: str) -> None:
    assert all(": " in problem for problem in problems_of(tmp_path, text))


def test_the_shipped_configuration_is_read_if_it_is_there(tmp_path: Path) -> None:
    shipped = DAEMON.parent / "config" / "rollbackd.toml"
    if not shipped.exists():
        pytest.skip("not shipped yet")
    tomllib.loads(shipped.read_text())
    assert load_settings(shipped).targets


def test_bad_configuration_is_exit_78_with_one_line_a_problem(tmp_path: Path) -> None:
    path = write(
        tmp_path, GOOD.replace("shop@127", "shop:hunter2@127").replace("[store]", "[store]\nkeep = 1")
    )
    for command in ("serve", "check-config", "status"):
        done = subprocess.run(
            [sys.executable, "-m", "rollbackd", "--config", str(path), command],
            env={**os.environ, "PYTHONPATH": str(DAEMON)}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 78, done.stderr
        lines = done.stderr.splitlines()
        assert [line.split(": ")[1] for line in lines] == ["store.keep", "targets[0].database.url"]
        assert "hunter2" not in done.stderr


# -- metrics ---------------------------------------------------------------------------------------------------------------

METRIC = """
[[targets.metrics]]
name = "p95"
query = 'p95{service="$service"}'
critical = 2.0
"""


def test_metrics_are_asked_of_the_one_server_or_of_the_targets_own(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, '[prometheus]\nurl = "http://one:9090"\n' + GOOD + METRIC))
    one = settings.prometheus_of(settings.targets[0])
    assert one is not None
    assert one.url == "http://one:9090"
    assert settings.targets[0].prometheus == one, "so that a reload sees that the target changed"
    own = (
        '[prometheus]\nurl = "http://one:9090"\n'
        + GOOD
        + '[targets.prometheus]\nurl = "https://own/prom"\n'
        + METRIC
    )
    settings = load_settings(write(tmp_path, own))
    assert settings.prometheus_of(settings.targets[0]) is settings.targets[0].prometheus
    (problem,) = problems_of(tmp_path, GOOD + METRIC)
    assert problem == "targets[0].metrics: no server is asked for them: add [prometheus] with its 'url'"


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ("query = 'p95{service=\"$svc\"}'", "query: $svc is no placeholder; there are $target, $service"),
        ("query = 'p95{service=$service}'", "query: $service must stand in quotes"),
        ("query = ''", "query: is empty"),
        ('category = "data_loss"', "category: "),
        ('category = "errors"\ndegraded = 1.0', "degraded: errors has no degrees"),
        ("degraded = 3.0", "critical: 2 is reached before 'degraded' at 3"),
        ('degraded = 1.0\nside = "below"', "critical: 2 is reached before 'degraded' at 1"),
        ("critical = nan", "critical: a number is expected"),
        ("times_before = true\ncritical = 0.5", "critical: more than 1 is expected"),
        ('times_before = true\nside = "below"', "critical: between 0 and 1 is expected"),
        ('side = "below"\nat_least = 1.0', 'at_least: goes with the side "above" alone'),
        ("readings = 0", "readings: counts from 1"),
        ('interval = "99ms"', "interval: at least 100ms"),
        ('window = "10s"', "step: has to be longer than nothing, and no longer than 'window'"),
        ('window = "7d"\nstep = "1s"', "step: a window has at most 11,000 of them"),
    ],
)
def test_a_metric_that_can_not_work_is_refused_with_what_would_be_right(
    tmp_path: Path, keys: str, fault: str
) -> None:
    given = {line.partition(" ")[0] for line in keys.splitlines()}
    usual = [line for line in METRIC.strip().splitlines() if line.partition(" ")[0] not in given]
    text = '[prometheus]\nurl = "http://one:9090"\n' + GOOD + "\n".join([*usual, keys])
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith(f"targets[0].metrics[0].{fault}")


def test_a_metric_without_a_limit_and_one_named_as_a_probe_are_refused(tmp_path: Path) -> None:
    text = '[prometheus]\nurl = "http://one:9090"\n' + GOOD + METRIC.replace("critical = 2.0", "")
    text += '[[targets.probes]]\nname = "p95"\nurl = "http://h/"\n'
    assert problems_of(tmp_path, text) == [
        "targets[0].metrics[0].name: 'p95' stands twice among probes and metrics",
        "targets[0].metrics[0].critical: set 'critical' or 'degraded' to a value; else the metric decides nothing",
    ]


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ('url = "one:9090"', "prometheus.url: an http or https URL without a query"),
        ('url = "http://one:9090/?x=1"', "prometheus.url: an http or https URL without a query"),
        ('url = "http://me:hunter2@one:9090"', "prometheus.url: holds a login"),
        ('url = "http://one:9090"\ntimeout = "0s"', "prometheus.timeout: has to be longer than nothing"),
        ('url = "http://one:9090"\ntoken = "hunter2"', "prometheus.token: a secret is given by reference"),
    ],
)
def test_a_prometheus_that_can_not_be_asked_is_refused_without_its_secret(
    tmp_path: Path, keys: str, fault: str
) -> None:
    (problem,) = problems_of(tmp_path, f"[prometheus]\n{keys}\n" + GOOD)
    assert problem.startswith(fault)
    assert "hunter2" not in problem


def test_the_token_of_a_prometheus_is_read_at_the_start(tmp_path: Path) -> None:
    tokens = '[prometheus]\nurl = "http://one:9090"\ntoken = "file:/nosuch/one"\n' + GOOD
    tokens += '[targets.prometheus]\nurl = "http://own:9090"\ntoken = "file:/nosuch/own"\n'
    with pytest.raises(ConfigurationError) as refused:
        check_secrets(load_configuration(write(tmp_path, tokens)))
    assert [p.partition(": ")[0] for p in refused.value.problems] == [
        "prometheus.token",
        "targets[0].prometheus.token",
    ]


def test_an_investigation_has_to_take_some_time(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, GOOD + '[targets.policy]\ninvestigate_for = "0s"\n')
    assert problem == "targets[0].policy.investigate_for: has to be longer than nothing"
