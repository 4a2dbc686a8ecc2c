"""What the documents say is so: links, commands, paths, keys, codes, statements; and the snippets run."""

import ast
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest
from tests.conftest import RequireProgram

from rollbackd import errors, settings
from rollbackd.adapters.metrics import Metrics
from rollbackd.app.configuration import load_configuration
from rollbackd.cli.main import COMMANDS
from rollbackd.cli.output import EXIT_CODES
from rollbackd.core.events import Category, Event, EventKind, Severity
from rollbackd.core.gates import Gate
from rollbackd.core.planning.steps import STEP_KINDS
from rollbackd.resources import resource
from rollbackd.workflow.callers import Role

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ROOT / "daemon" / "rollbackd"
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "RUNBOOK.md", "CHANGELOG.md")
START_S = 30.0


def read(name: str) -> str:
    """A document."""
    return (ROOT / name).read_text(encoding="utf-8")


def without_fences(text: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def fenced(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a document's titles, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", without_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def table_after(text: str, header: str) -> list[str]:
    """The first cells of the table with this header row."""
    rows = text.split(header, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [row.split("|")[1].strip() for row in rows]


def settings_keys() -> set[str]:
    """Keys as the documents write them: `policy.mode`, `server.listen`, `deployment.stop`."""
    keys = set()
    for section in (settings.Settings, settings.Target):
        for field in msgspec.structs.fields(section):
            if isinstance(field.type, type) and issubclass(field.type, settings.Section):
                keys |= {f"{field.name}.{below.name}" for below in msgspec.structs.fields(field.type)}
    return keys


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    """Every relative link names a file that is there, and every anchor a title in it."""
    for target in re.findall(r"\]\(([^)]+)\)", without_fences(read(name))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ROOT / path if path else ROOT / name
        assert file.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{name} links to {target}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_keys_and_metrics_that_are_named_exist(name: str) -> None:
    """A path of the source, a key of the configuration and a metric in code type are there."""
    spans = re.findall(r"`([^`\n]+)`", without_fences(read(name)))
    checks = set(
        re.findall(r'check(?:=| = )"([a-z_.]+)"', (SOURCE / "adapters/backup/backups.py").read_text())
    )
    configuration = load_configuration(resource("config", "rollbackd.toml"))
    exposed = Metrics(configuration.settings.targets, ("rollbackd",), {}).text()[0].decode()
    for span in spans:
        if re.fullmatch(
            r"(core|workflow|intake|adapters|app|cli|demo)/[\w/.]*|resources\.py|settings\.py|ports\.py", span
        ):
            assert (SOURCE / span).exists(), f"{name} names {span}"
        if re.fullmatch(r"(hooks|config|grafana|systemd|tests)/[\w/.-]*", span) and "NAME" not in span:
            assert (ROOT / span).exists(), f"{name} names {span}"
        for key in re.findall(
            r"\b(?:server|store|policy|backup|deployment|migrations|counting)\.[a-z_]+", span
        ):
            assert key in settings_keys() | checks, f"{name} names the key {key}"
        for metric in re.findall(r"\brollbackd_[a-z_]+", span):
            assert metric in exposed, f"{name} names the metric {metric}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_document_names_a_path_of_somebodys_machine(name: str) -> None:
    """Documents are for everybody."""
    assert not re.search(r"/root/|/home/|rollbackd-demo-", read(name))


def test_the_table_of_commands_is_that_of_the_command_line() -> None:
    """Each command has a row, and each row is a command."""
    rows = [
        cell.strip("`").split()[0] for cell in table_after(read("README.md"), "| command | what it does |")
    ]

    assert sorted(rows) == sorted(COMMANDS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_examples_exist(name: str) -> None:
    """`rollbackd WORD` in code is one of the commands, and `make WORD` a target of the Makefile."""
    text = read(name)
    spans = re.findall(r"`([^`\n]+)`", without_fences(text))
    code = "\n".join(
        [*fenced(text, "sh"), *(span for span in spans if span.startswith(("rollbackd ", "make ")))]
    )
    code = re.sub(r"\s#.*", "", code)
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    for command in re.findall(r"(?:^|\s)rollbackd ((?:[a-z]+-)*[a-z]+)\b(?!\.)", code, re.MULTILINE):
        assert command in COMMANDS, f"{name}: rollbackd {command}"
    for target in re.findall(r"^make ([a-z]+)", code, re.MULTILINE):
        assert target in targets, f"{name}: make {target}"


def test_exit_codes_are_those_of_errors_and_outcomes() -> None:
    """The sentence in the README, the help's, and the codes that the runbook names."""
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.RollbackdError)
    ]
    codes = {c.exit_code for c in classes} | set(EXIT_CODES.values())
    sentence = re.search(r"Exit codes: (.*?)\.", read("README.md"))
    assert sentence is not None

    assert {int(code) for code in re.findall(r"\b\d+\b", sentence[1])} == codes
    assert {int(code) for code in re.findall(r"[Ee]xit code \**(\d+)", read("RUNBOOK.md"))} <= codes


def test_the_native_event_is_as_the_readme_says() -> None:
    """Its example is an event, and its tables have every kind, category and severity."""
    section = read("README.md").split("## The native event")[1].split("\n## ")[0]
    event = msgspec.json.decode(fenced(section, "json")[0], type=Event)
    kinds = {
        kind for cell in table_after(section, "| kind | needs") for kind in re.findall(r"`([a-z.]+)`", cell)
    }

    assert event.kind is EventKind.DEPLOY_STARTED
    assert kinds == set(EventKind)
    assert all(f"`{word}`" in section for word in (*Category, *Severity))


def test_the_readmes_configurations_load(tmp_path: Path) -> None:
    """Each TOML block is a whole configuration."""
    blocks = fenced(read("README.md"), "toml")
    for block in blocks:
        file = tmp_path / "rollbackd.toml"
        file.write_text(block, encoding="utf-8")
        assert load_configuration(file).settings.targets
    assert blocks


def test_roles_gates_and_steps_are_named_as_they_are() -> None:
    """Closed lists that the documents repeat are whole."""
    readme, architecture, runbook = read("README.md"), read("ARCHITECTURE.md"), read("RUNBOOK.md")

    assert f"roles: {', '.join(Role)}" in readme
    assert [cell.strip("`") for cell in table_after(architecture, "| step | what it does |")] == list(
        STEP_KINDS
    )
    listed = re.search(r"judges whether it may be done: ([^.]*)\.", architecture)
    assert listed is not None
    assert [gate.replace(" ", "_").replace("-", "_") for gate in listed[1].split(", ")] == list(Gate)
    waiting = " ".join(table_after(runbook, "| reason begins with |"))
    assert set(re.findall(r"`(\w+):`", waiting)) <= set(Gate)


def test_the_contracts_are_those_of_the_build() -> None:
    """The architecture's list of contracts is import-linter's."""
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    section = read("ARCHITECTURE.md").split("## The layers")[1].split("\n## ")[0]

    assert re.findall(r"^\* (.*)$", section, re.MULTILINE) == [contract["name"] for contract in contracts]


def test_every_statement_that_a_held_run_can_have_is_in_the_runbook() -> None:
    """For each place in the code that holds a run, the runbook has all the words of that statement."""
    runbook = " ".join(read("RUNBOOK.md").split())
    statements = [
        *statements_in(SOURCE / "workflow/engine.py"),
        *statements_in(SOURCE / "workflow/steps.py"),
        *statements_in(SOURCE / "core/standing.py"),
        *statements_in(SOURCE / "workflow/deciding.py"),
    ]
    assert len(statements) > 10
    for parts in statements:
        assert all(part in runbook for part in parts), f"the runbook doesn't know: {' … '.join(parts)}"


def test_every_statement_in_the_runbook_is_one_of_the_codes() -> None:
    """A title in quotation marks is what rollbackd says, with … for what differs."""
    said = " ".join(" ".join(parts) for path in sources() for parts in all_texts(path))
    section = read("RUNBOOK.md").split("## A run is held")[1].split("\n## ")[0]
    titles = re.findall(r'^### "(.*)"$', section, re.MULTILINE)
    assert titles
    for title in titles:
        for piece in re.split(r"…|'stop …'|'", title):
            words = piece.strip(" .;:,")
            assert words in said, f"nothing says {words!r}"


def sources() -> list[Path]:
    """Where statements come from."""
    return [
        SOURCE / name
        for name in ("workflow/engine.py", "workflow/steps.py", "core/standing.py", "workflow/deciding.py")
    ]


def all_texts(path: Path) -> Iterator[list[str]]:
    """The constant parts of every text in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr | ast.Constant):
            yield parts_of(node)


def statements_in(path: Path) -> Iterator[list[str]]:
    """The constant parts of each text that becomes a held run's statement."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        texts: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name in ("HeldError", "_unknowable"):
                texts += node.args[:1]
            if name == "WhereItStands" and "NEITHER" in ast.unparse(node):
                texts += [keyword.value for keyword in node.keywords if keyword.arg == "statement"]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("statement", "said"):
            texts.append(node.value)
        for text in texts:
            for inner in texts_of(text):
                parts = [part for part in parts_of(inner) if len(part.split()) >= 3]
                if parts:
                    yield parts


def texts_of(node: ast.AST) -> Iterator[ast.JoinedStr | ast.Constant]:
    """The texts of an expression, each as a whole."""
    if isinstance(node, ast.JoinedStr | ast.Constant):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from texts_of(child)


def parts_of(node: ast.JoinedStr | ast.Constant) -> list[str]:
    """What of a text is always the same, in its order."""
    values = node.values if isinstance(node, ast.JoinedStr) else [node]
    found = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    return [" ".join(part.split()).strip(" .;:,'()") for part in found]


# -- against a real daemon -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Daemon:
    """A daemon with the README's configuration; its database isn't there, which stops neither of them."""

    url: str
    secret: Path


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """`rollbackd serve`, as a process of its own."""
    folder = tmp_path_factory.mktemp("daemon")
    secret = folder / "hook"
    secret.write_text("whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=" + "\n", encoding="utf-8")
    (folder / "shop").write_text("wrong", encoding="utf-8")
    (folder / "scratch").write_text("wrong", encoding="utf-8")
    for file in (secret, folder / "shop", folder / "scratch"):
        file.chmod(0o600)
    configuration = fenced(read("README.md"), "toml")[0].replace("/etc/rollbackd/secrets", str(folder))
    file = folder / "rollbackd.toml"
    here = '[server]\nlisten = "127.0.0.1:0"\n[store]\ndirectory = "store"\n[logging]\nformat = "json"\n'
    first, rest = configuration.split("\n", 1)
    file.write_text(f"{first}\n{here}{rest}".replace("db.internal:5432", "127.0.0.1:1"), encoding="utf-8")
    log = folder / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "rollbackd", "--config", file, "serve"],
            stderr=written,
            env={**os.environ, "PYTHONPATH": str(ROOT / "daemon")},
        )
    try:
        yield Daemon(f"http://127.0.0.1:{port_of(process, log)}", secret)
    finally:
        process.terminate()
        process.wait(30)


def port_of(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port that the daemon says it listens on."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            if '"daemon_started"' in line:
                port: int = json.loads(line)["port"]
                return port
        time.sleep(0.05)
    raise AssertionError(f"the daemon didn't start: {log.read_text(encoding='utf-8')}")


def test_the_shell_snippet_sends_an_event(daemon: Daemon, require_program: RequireProgram) -> None:
    """What the README says to run is recorded, and an altered body isn't."""
    for program in ("curl", "openssl"):
        require_program(program)
    marker = "<!-- run by tests/docs/test_documents.py -->\n"
    snippet = fenced(read("README.md").split(marker)[1], "sh")[0]
    forged = snippet.replace('--data-binary "$1"', '--data-binary "$1 "')
    environment = {**os.environ, "ROLLBACKD_URL": daemon.url, "HOOK_SECRET_FILE": str(daemon.secret)}

    def said(script: str) -> str:
        done = subprocess.run(
            ["sh", "-eu", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout

    assert re.fullmatch(r'\{"id":"delivery-[^"]+","events":1\} 202\n', said(snippet))
    assert said(forged).endswith(" 401\n")


async def test_the_paths_of_the_readme_are_those_of_the_daemon(daemon: Daemon) -> None:
    """Every path that is named in code exists, and every one that exists is named."""
    async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/openapi.json") as answer:
        there = set((await answer.json())["paths"])
    shapes = {path: re.compile(re.sub(r"\{\w+\}", "[^/]+", path)) for path in there}
    named: set[str] = set()
    for document in DOCUMENTS:
        for path in re.findall(
            r"(?:\$ROLLBACKD_URL|:8765|[` ])(/(?:api/v1|hooks|livez|readyz|metrics|openapi\.json)[\w/{}.]*)",
            read(document),
        ):
            if path == "/api/v1":
                continue
            matching = {shape for shape, pattern in shapes.items() if pattern.fullmatch(path.rstrip("."))}
            assert matching, f"{document} names {path}"
            named |= matching

    assert there - named == set()


@pytest.mark.parametrize(
    ("path", "status"),
    [("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/api/v1/targets", 401), ("/api/v1/runs/x", 401)],
)
async def test_what_is_open_and_what_needs_a_token(daemon: Daemon, path: str, status: int) -> None:
    """As the README says."""
    async with aiohttp.ClientSession() as session, session.get(daemon.url + path) as answer:
        assert answer.status == status


@pytest.mark.parametrize(
    ("hook", "body", "headers", "status"),
    [
        ("nobodys", b"{}", {}, 404),
        ("rollbackd", b"{}", {}, 401),
        ("rollbackd", b"x", {"Content-Encoding": "gzip"}, 415),
        ("rollbackd", b" " * 2_000_000, {}, 413),
    ],
)
async def test_what_a_delivery_gets(
    daemon: Daemon, hook: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    """Rows of the README's table that need no signature."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{daemon.url}/hooks/{hook}", data=body, headers=headers) as answer,
    ):
        assert answer.status == status
