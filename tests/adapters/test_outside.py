"""Probes, declared commands, announcements and secrets."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rollbackd.adapters.announcements import WebhookAnnouncer
from rollbackd.adapters.commands import CommandApplication, run_command
from rollbackd.adapters.probes import HttpProber
from rollbackd.adapters.secrets import read_secret
from rollbackd.core.checks import Outcome
from rollbackd.core.evidence import Measurement, Quality
from rollbackd.errors import ConfigurationError, PermanentError, TransientError
from rollbackd.settings import Command, DeploymentCommands, Duration, Notify, Probe, SecretReference

pytestmark = [pytest.mark.xdist_group("adapters-backup"), pytest.mark.timeout(30)]

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PLAIN = {"PATH": os.environ["PATH"]}


# -- probes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def site() -> AsyncIterator[TestServer]:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        match request.path:
            case "/slow":
                await asyncio.sleep(3)
            case "/moved":
                raise web.HTTPFound("/ok")
            case "/cut":
                assert request.transport is not None
                request.transport.close()
        return web.Response(status=int(request.query.get("status", 200)), text="all systems go")

    application = web.Application()
    application.router.add_get("/{name}", answer)
    server = TestServer(application)
    server.asked = asked  # type: ignore[attr-defined]
    await server.start_server()
    yield server
    await server.close()


@pytest.fixture
async def measure() -> AsyncIterator[Callable[..., Awaitable[Measurement]]]:
    prober = HttpProber()

    async def take(url: Any, **more: Any) -> Measurement:
        return await prober.measure(Probe(name="front", url=str(url), timeout=Duration(0.5), **more), NOW)

    yield take
    await prober.close()


async def test_an_expected_status_is_healthy_and_another_is_not(site: TestServer, measure: Any) -> None:
    good = await measure(site.make_url("/ok"))
    assert (good.quality, good.healthy, good.value, good.name, good.at) == (
        Quality.OK,
        True,
        200,
        "front",
        NOW,
    )
    bad = await measure(site.make_url("/ok?status=500"))
    assert (bad.quality, bad.healthy, bad.value, bad.detail) == (Quality.OK, False, 500, "answered 500")
    assert (await measure(site.make_url("/ok?status=503"), expect_status=(200, 503))).healthy


async def test_an_expected_text_must_be_there(site: TestServer, measure: Any) -> None:
    assert (await measure(site.make_url("/ok"), expect_text="systems go")).healthy is True
    missing = await measure(site.make_url("/ok"), expect_text="degraded")
    assert (missing.quality, missing.healthy) == (Quality.OK, False)


async def test_a_redirect_is_an_answer_and_is_not_followed(site: TestServer, measure: Any) -> None:
    moved = await measure(site.make_url("/moved"))
    assert (moved.healthy, moved.value) == (False, 302)
    assert site.asked == ["/moved"]  # type: ignore[attr-defined]


async def test_a_site_that_refuses_is_slow_or_hangs_up_is_unhealthy(
    site: TestServer, measure: Any, unused_tcp_port: int
) -> None:
    began = time.monotonic()
    for url in (f"http://127.0.0.1:{unused_tcp_port}/", site.make_url("/slow"), site.make_url("/cut")):
        reading = await measure(url)
        assert (reading.quality, reading.healthy) == (Quality.OK, False), reading
        assert "\n" not in reading.detail
    assert time.monotonic() - began < 2


async def test_a_port_on_which_nobody_listens_is_told_in_the_words_of_the_system(
    measure: Any, unused_tcp_port: int
) -> None:
    """Not in those of the client's library, which say the address twice and speak of TLS."""
    assert (await measure(f"http://127.0.0.1:{unused_tcp_port}/")).detail == "no answer: connection refused"


@pytest.mark.parametrize(
    "url",
    [
        "http://no-such-host.invalid/",
        "ftp://example.org/",
        "http://",
        "not a url",
        "http://127.0.0.1:99999/",
        "unix:///x",
    ],
)
async def test_a_probe_that_cannot_be_made_says_nothing_about_health(url: str, measure: Any) -> None:
    reading = await measure(url)
    assert (reading.quality, reading.healthy) == (Quality.ERROR, None), reading


async def test_an_address_without_tls_asked_for_by_https_does_not_raise(
    site: TestServer, measure: Any
) -> None:
    reading = await measure(str(site.make_url("/ok")).replace("http://", "https://"))
    assert reading.healthy is not True


# -- commands -----------------------------------------------------------------------------------------------------------


async def test_a_command_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TransientError, match=r"sh took longer than 0\.5 s"):
        await run_command(("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"), 0.5, PLAIN)
    assert time.monotonic() - began < 3
    await asyncio.sleep(0.1)
    process = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}")
    assert not process.exists() or ") Z" in (process / "stat").read_text()


async def test_a_command_that_leaves_a_daemon_behind_is_done_when_it_ends(tmp_path: Path) -> None:
    began = time.monotonic()
    ended = await run_command(("sh", "-c", f"sleep 5 & echo $! > {tmp_path}/pid; echo started"), 10, PLAIN)
    took = time.monotonic() - began
    os.kill(int((tmp_path / "pid").read_text()), 9)
    await asyncio.sleep(0.1)
    assert (ended.code, ended.stdout) == (0, "started\n")
    assert took < 4


async def test_an_argument_stays_an_argument_and_the_environment_is_what_was_given(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    ended = await run_command(("echo", "; rm", f"{tmp_path}/kept", "$(id)", "*"), 5, PLAIN)
    assert ended.stdout == f"; rm {tmp_path}/kept $(id) *\n"
    assert (tmp_path / "kept").exists()
    shown = await run_command(("env",), 5, {**PLAIN, "ONLY": "this"})
    assert {line.partition("=")[0] for line in shown.stdout.splitlines()} == {"PATH", "ONLY"}


async def test_output_is_cut_and_does_not_block_and_stdin_is_empty() -> None:
    ended = await run_command(
        ("sh", "-c", "cat; head -c 3000000 /dev/zero; echo words >&2; exit 3"), 10, PLAIN
    )
    assert (ended.code, len(ended.stdout), ended.last_words()) == (3, 65_536, "words")


async def test_a_command_that_is_not_there_is_permanent() -> None:
    with pytest.raises(PermanentError, match="no-such-program can't be started"):
        await run_command(("no-such-program",), 1, PLAIN)


async def test_an_application_is_started_as_the_version_and_looked_at(tmp_path: Path) -> None:
    start = Command(
        command=("sh", "-c", f'echo "$1" > {tmp_path}/running', "-", "shop:{version}"),
        done_when=("grep", "-qx", "shop:{version}", f"{tmp_path}/running"),
    )
    stop = Command(command=("sh", "-c", "echo cannot stop >&2; exit 2"), done_when=("false",))
    application = CommandApplication(DeploymentCommands(start=start, stop=stop))
    assert not await application.runs("1.2; rm")
    await application.start("1.2; rm")
    assert await application.runs("1.2; rm")
    assert not await application.runs("1.3")
    assert not await application.is_stopped()
    with pytest.raises(TransientError, match="sh ended with exit code 2: cannot stop"):
        await application.stop()
    assert {f.outcome for f in await application.readiness()} == {Outcome.PASSED}


async def test_an_application_without_commands_says_that_a_person_is_needed() -> None:
    application = CommandApplication(
        DeploymentCommands(start=Command(command=("no-such-program",), done_when=("true",)))
    )
    assert (application.can_stop, application.can_start) == (False, True)
    found = {f.check: f.outcome for f in await application.readiness()}
    assert found == {"deployment.stop": Outcome.WARNED, "deployment.start": Outcome.FAILED}
    with pytest.raises(PermanentError):
        await application.stop()


# -- announcements ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def inbox() -> AsyncIterator[tuple[TestServer, list[Any]]]:
    got: list[Any] = []

    async def take(request: web.Request) -> web.StreamResponse:
        if request.path == "/slow":
            await asyncio.sleep(3)
        got.append(await request.json())
        return web.Response(status=500 if request.path == "/broken" else 200)

    application = web.Application()
    application.router.add_post("/{name}", take)
    server = TestServer(application)
    await server.start_server()
    yield server, got
    await server.close()


async def test_an_announcement_is_posted_as_json(inbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, got = inbox
    monkeypatch.setenv("HOOK_URL", str(server.make_url("/in")))
    announcer = WebhookAnnouncer(Notify(url=SecretReference("env:HOOK_URL")))
    await announcer.announce("run_held", {"run": "run-1", "at": NOW})
    (document,) = got
    assert "run_held" in json.dumps(document)
    assert "run-1" in json.dumps(document)


@pytest.mark.parametrize("place", ["/slow", "/broken", "refused", "not a url", "unset"])
async def test_an_announcement_that_cannot_be_made_never_raises_and_ends_in_time(
    place: str, inbox: Any, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    server, _ = inbox
    url = {"refused": f"http://127.0.0.1:{unused_tcp_port}/s3cret", "not a url": "not a url"}.get(
        place
    ) or str(server.make_url(place if place[0] == "/" else "/"))
    if place != "unset":
        monkeypatch.setenv("HOOK_URL", url)
    began = time.monotonic()
    await WebhookAnnouncer(Notify(url=SecretReference("env:HOOK_URL"), timeout=Duration(0.5))).announce(
        "x", {"odd": object()}
    )
    await WebhookAnnouncer(Notify()).announce("x", {})
    assert time.monotonic() - began < 2


# -- secrets ------------------------------------------------------------------------------------------------------------


def test_a_secret_is_read_from_a_file_a_credential_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(" s3cret\n")
    (tmp_path / "key").chmod(0o640)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("KEY", "from env")
    assert read_secret(SecretReference(f"file:{tmp_path}/key")) == " s3cret"
    assert read_secret(SecretReference("file:key")) == " s3cret"
    assert read_secret(SecretReference("env:KEY")) == "from env"


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        ("s3cret", 0o644, "may be read by everybody: chmod o-r"),
        ("\n", 0o600, "is empty"),
        (None, 0, "can't be read: No such file"),
    ],
)
def test_a_secret_that_is_open_to_all_empty_or_missing_is_refused(
    content: str | None, mode: int, expected: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
        (tmp_path / "key").chmod(mode)
    with pytest.raises(ConfigurationError, match=expected) as refused:
        read_secret(SecretReference(f"file:{tmp_path}/key"))
    assert "s3cret" not in str(refused.value)


def test_a_variable_or_credential_that_is_not_there_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigurationError, match="NO_SUCH_KEY is not set"):
        read_secret(SecretReference("env:NO_SUCH_KEY"))
    with pytest.raises(ConfigurationError, match="webhook"):
        read_secret(SecretReference("file:webhook"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "bytes").chmod(0o600)
    with pytest.raises(ConfigurationError, match="can't be read"):
        read_secret(SecretReference(f"file:{tmp_path}/bytes"))
