"""Running the daemon, checking its configuration, its tokens."""

from pathlib import Path

import click

from rollbackd.app.clock import SystemClock
from rollbackd.app.configuration import load_configuration, load_parts_of
from rollbackd.app.daemon import serve as run_daemon
from rollbackd.app.local import ROLES, drop_token, guarding, make_token, reading, reload_daemon
from rollbackd.cli import completing
from rollbackd.cli.main import asynchronous
from rollbackd.cli.manual import CONFIGURATION, TERMINAL, Manual
from rollbackd.cli.output import OUTCOME_ICONS, console, json_option, safe, show_json, table
from rollbackd.core.wording import counted
from rollbackd.workflow.readiness import check_readiness


@click.command(
    cls=Manual,
    changes="The store; and, as far as 'policy.mode' lets it, whatever 'rollbackd rollback' changes.",
    examples=(
        ("In the foreground, to see how it does:", "rollbackd --config rollbackd.toml serve"),
        ("As a service:", "systemctl enable --now rollbackd"),
    ),
    exits={
        0: "SIGTERM came, and what was under way is finished",
        1: "the store or the address can't be had",
        78: "the configuration can't work: every problem is named by its path, and nothing was started",
    },
    environment={
        **CONFIGURATION,
        "CREDENTIALS_DIRECTORY": "where systemd put the credentials that 'file:' names without a folder",
        "NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID": "set by systemd",
    },
)
@click.pass_obj
@asynchronous
async def serve(config: Path) -> None:
    """Run the daemon until SIGTERM; a step that is under way is finished first.

    It stays in the foreground and logs to stderr, one line an event: JSON, or for people on a terminal ([logging]). It
    listens at server.listen for senders and token holders, and at the socket rollbackd.sock in store.directory for local
    people. One daemon holds a store; a second one is refused. A run that was under way when the last daemon ended is taken up:
    each remaining step is looked at before it is done.

    \b
    Signals:
      SIGTERM, SIGINT  stop. Nothing new is taken; a step of a run that changes something (a dump, a
                       downgrade, stopping or starting the application) is finished first, one that
                       only reads is cut. A run that isn't done goes on at the next start.
      SIGHUP           read the configuration anew, as 'rollbackd reload' does.
      SIGABRT          (a watchdog's) end at once, and log where each thread stood.

    \b
    Under systemd (Type=notify):
      READY, RELOADING, STOPPING and STATUS are told; while a stop waits for a step, more time is asked
      for (EXTEND_TIMEOUT_USEC). The watchdog is fed as long as the pipeline and the house are heard of
      in time and the store answers: a daemon that hangs is ended and started again.
    """
    await run_daemon(config)


@click.command(
    cls=Manual,
    changes="Nothing. It asks the databases, interpreters and programs that the configuration names.",
    examples=(
        ("Before the daemon is started or restarted:", "rollbackd --config rollbackd.toml check-config"),
        ("A changed one, before it is put in place:", "rollbackd --config new.toml check-config"),
        ("In CI, where no database is in reach:", "rollbackd --config rollbackd.toml check-config --offline"),
    ),
    exits={
        0: "it can work; warnings are named",
        1: "something that is needed isn't there, or may not be done",
    },
    environment={**CONFIGURATION, **TERMINAL},
)
@click.option(
    "--offline", is_flag=True, help="Look at the files alone; ask no database, interpreter or program."
)
@json_option
@click.pass_obj
@asynchronous
async def check_config(config: Path, offline: bool, as_json: bool) -> int:
    """Name every problem of the configuration, by its path, and what the configured roles may do.

    Read is what 'serve' and 'reload' would read: the file, the hooks with their fixtures, the decision matrix (every
    combination of facts is tried), and every secret. Unknown keys are refused, and all problems are named at once.
    Then each target is looked at: is the database the primary, may the roles read, migrate, dump and restore, does the
    interpreter load the migrations, does env.py see the same version table, are pg_dump and pg_restore new enough, is there room for a
    backup, are there commands that stop and start the application. A running daemon isn't asked.

    Run it as the daemon's user: it needs the same files. Secrets that systemd hands to the unit as credentials
    ("file:NAME") aren't there in a shell; set CREDENTIALS_DIRECTORY to a folder that has them.
    """
    configuration = load_configuration(config)
    hooks = load_parts_of(configuration)
    if offline and as_json:
        show_json({target.name: [] for target in configuration.settings.targets})
        return 0
    if offline:
        click.echo(
            f"{config}: {counted(len(configuration.settings.targets), 'target')}, {counted(len(hooks), 'hook')}, the matrix is proved"
        )
        return 0
    found = {}
    async with guarding(configuration) as guarded:
        for name, one in guarded.items():
            found[name] = await check_readiness(one, SystemClock().now())
    failed = any(f.outcome == "failed" for findings in found.values() for f in findings)
    if as_json:
        show_json(
            {
                name: [{"check": f.check, "outcome": f.outcome, "text": f.text} for f in fs]
                for name, fs in found.items()
            }
        )
        return int(failed)
    out = console()
    out.print(
        f"{safe(config)}: {counted(len(found), 'target')}, {counted(len(hooks), 'hook')}, {len(configuration.matrix.rows)} matrix rows proved"
    )
    for name, findings in found.items():
        out.print(f"[bold]{safe(name)}[/]")
        for finding in findings:
            out.print(f"  {OUTCOME_ICONS[finding.outcome]} {finding.check}: {safe(finding.text)}")
    return int(failed)


@click.command(
    cls=Manual,
    changes="What the running daemon goes by; nothing, where the configuration is refused.",
    examples=(
        ("Bring a changed file into force:", "rollbackd reload"),
        ("The same, as root, by the unit:", "systemctl reload rollbackd"),
    ),
    exits={
        0: "in force, or nothing has changed",
        1: "no daemon answers, or you may not open its socket",
        78: "refused: every problem is named by its path, and the daemon goes on with what it had",
    },
    environment=CONFIGURATION,
)
@json_option
@click.pass_obj
@asynchronous
async def reload(config: Path, as_json: bool) -> None:
    """Bring a changed configuration into force, without a restart.

    This machine's daemon reads the file, the hooks, the decision matrix and the secrets anew, and judges them as a whole: where
    anything is wrong, every problem is named by its path and logged, and what was in force stays in force. SIGHUP does the
    same without an answer.

    \b
    What changes when:
      hooks, keys, matrix, [notify], [logging], limits of [server], retention of [store]
                        at once; what is being answered is finished as it began
      a target          at once, or as soon as nobody uses it: a run, a gate, a plan, a rehearsal and a
                        look at a deployment each see one configuration from beginning to end. A watched
                        deployment is judged by the new one from its next look on. A run that is held
                        or waits for approval goes on with the new one
      a new target      at once; it is documented in the background
      a target that was taken out
                        goes when nothing is under way on it and its deployment is over; until then no
                        new deployment of it begins. To stop its automation at once: rollbackd pause
      server.listen, store.directory
                        never: the reload is refused as a whole. Restart the daemon for these

    Secrets that systemd hands over as credentials (LoadCredential=) are those of the last start: rotate them by a restart.
    """
    reloaded = await reload_daemon(config)
    if as_json:
        show_json(reloaded)
        return
    changed, waiting = reloaded["changed"], reloaded["waiting"]
    now = [path for path in changed if path.removeprefix("targets.") not in waiting]
    click.echo(f"in force: {', '.join(now)}" if now else "nothing has changed" if not waiting else "waits:")
    for name, why in waiting.items():
        click.echo(f"  {name} {why}")


@click.group()
def tokens() -> None:
    """Make, revoke and list API tokens.

    Each of the commands below has a page of its own: 'rollbackd tokens COMMAND --help'.
    """


@tokens.command(
    "create",
    cls=Manual,
    changes="The store has one more token, as its digest.",
    examples=(
        (
            "For a CD job, which may ask for rollbacks and use the gate:",
            "rollbackd tokens create ci --role operate",
        ),
        ("For a person who may approve:", "rollbackd tokens create ann --role read --role approve"),
    ),
    exits={1: "there is a token of this name, or the name can't be one"},
    environment=CONFIGURATION,
)
@click.argument("name")
@click.option(
    "--role",
    "roles",
    type=click.Choice(ROLES),
    multiple=True,
    required=True,
    help="May be given several times.",
)
@json_option
@click.pass_obj
@asynchronous
async def create_token(config: Path, name: str, roles: tuple[str, ...], as_json: bool) -> None:
    """Make a token and print it, once: only its digest is kept."""
    token = await make_token(config, name, roles)
    if as_json:
        show_json({"name": name, "roles": list(roles), "token": token})
        return
    click.echo(token)


@tokens.command(
    "revoke",
    cls=Manual,
    changes="The token is unknown from now on. What was asked for with it stays.",
    examples=(("Somebody has left:", "rollbackd tokens revoke ann"),),
    exits={1: "there is no such token"},
    environment=CONFIGURATION,
)
@click.argument("name", shell_complete=completing.tokens)
@json_option
@click.pass_obj
@asynchronous
async def revoke_token(config: Path, name: str, as_json: bool) -> None:
    """Revoke a token; from then on it is unknown."""
    await drop_token(config, name)
    if as_json:
        show_json({"name": name, "revoked": True})
        return
    click.echo(f"{name} is revoked")


@tokens.command(
    "list",
    cls=Manual,
    changes="Nothing: it only reads.",
    examples=(("Who may ask what?", "rollbackd tokens list"),),
    environment={**CONFIGURATION, **TERMINAL},
)
@json_option
@click.pass_obj
@asynchronous
async def list_tokens(config: Path, as_json: bool) -> None:
    """List tokens; never their secrets."""
    async with reading(config) as (_, store, _):
        known = await store.tokens()
    if as_json:
        show_json(
            [
                {
                    "name": t.name,
                    "roles": t.role.split(","),
                    "created_at": t.created_at,
                    "revoked_at": t.revoked_at,
                }
                for t in known
            ]
        )
        return
    listed = table("name", "roles", "created", "revoked")
    for token in known:
        revoked = f"{token.revoked_at:%F %T}" if token.revoked_at else ""
        listed.add_row(safe(token.name), token.role, f"{token.created_at:%F %T}", revoked)
    console().print(listed)
