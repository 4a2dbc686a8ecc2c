"""The console and the report in a real browser: signing in, seeing, approving, and the run going on before one's eyes."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.conftest import RequireProgram
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import NEW, OLD, Ground, Project, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.xdist_group("console")]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BROWSER = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
AXE = "axe-core@4.10.3"
# What axe calls serious hinders somebody; what is minor is looked at by people.
GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def browser(require_program: RequireProgram) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=str(require_program("chromium", "chromium-browser")), args=list(BROWSER)
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def axe(require_program: RequireProgram, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The accessibility checker's own source."""
    folder = tmp_path_factory.mktemp("axe")
    npm = require_program("npm")
    done = subprocess.run(
        [str(npm), "install", "--prefix", str(folder), "--no-audit", "--no-fund", AXE],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture
def make_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Makes a page in a context of its own; at the end nothing may have been said in its console."""
    said: list[str] = []
    contexts = []

    def make(size: dict[str, int] | None = None, **options: Any) -> Page:
        context = browser.new_context(viewport=size or DESKTOP, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture
def waiting(make_ground: MakeGround, tmp_path: Path) -> Ground:
    """A deploy in production went bad: its rollback is planned and rehearsed, and waits for somebody's word."""
    project = Project(tmp_path / "project")
    project.revision(
        "first",
        "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL)')\n"
        "op.execute(\"INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 50) n\")",
        "op.drop_table('customers')",
    )
    project.revision(
        "more",
        "op.add_column('customers', sa.Column('nickname', sa.Text))",
        "op.drop_column('customers', 'nickname')",
    )
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "first")
    ground.configure(environment="production", policy={"mode": "automatic", "approval_required": True})
    ground.runs_version(OLD)
    ground.start()
    ground.deploy()
    ground.query("UPDATE customers SET nickname = '<b>bold</b>' WHERE id < 8")
    wait_until(lambda: ground.ask("GET", "/api/v1/deployments")[1][0]["price"], ground.words)
    # What others send may hold anything; nothing of it may become markup.
    ground.send(
        "signal.firing",
        category="errors",
        severity="critical",
        name="<img src=x onerror=alert(1)>",
        reason="</script>",
    )
    (ground.service / "broken").write_text(NEW)
    wait_until(lambda: ground.run().get("state") == "awaiting_approval", ground.words)
    return ground


def sign_in(ground: Ground, page: Page, role: str) -> str:
    """With a new token of this role; returns where the console is."""
    name = f"{role}-{page.viewport_size['width'] if page.viewport_size else 0}"
    token = ground.ask("POST", "/api/v1/tokens", {"name": name, "roles": [role]})[1]["token"]
    url = f"http://127.0.0.1:{ground.port()}"
    page.goto(f"{url}/")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")
    return url


def grave_faults(page: Page, axe: str) -> list[str]:
    """What hinders people who can't see or point, and whatever is wider than the page."""
    found = page.evaluate(f"async () => {{ {axe}; return (await axe.run()).violations }}")
    faults = [
        f"{page.url}: {v['id']}: {v['help']}: {v['nodes'][0]['html'][:120]}"
        for v in found
        if v["impact"] in GRAVE
    ]
    if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        faults.append(f"{page.url}: wider than the page")
    return faults


def test_a_waiting_rollback_is_seen_understood_and_approved_in_the_browser(
    waiting: Ground, make_page: Callable[..., Page], tmp_path: Path
) -> None:
    run = waiting.run()["id"]
    page = make_page()
    url = sign_in(waiting, page, "approve")
    expect(page.get_by_text("awaiting approval").first).to_be_visible()
    page.screenshot(path=tmp_path / "overview.png", full_page=True)
    # The price of going back, on the deployment's own page.
    page.get_by_role("row", name="shop").get_by_role("link", name=NEW).click()
    expect(page.get_by_role("heading", name="The price of going back")).to_be_visible()
    expect(page.get_by_text("rows only the new schema holds").first).to_be_visible()
    expect(page.get_by_text("<img src=x onerror=alert(1)>")).to_be_visible()
    page.screenshot(path=tmp_path / "deployment.png", full_page=True)

    page.goto(f"{url}/runs/{run}")
    for seen in ("Somebody's word is needed", "public.customers.nickname", "rehearsed", "proved to"):
        expect(page.get_by_text(seen, exact=False).first).to_be_visible()
    page.screenshot(path=tmp_path / "run.png", full_page=True)
    page.get_by_label("Note").fill("looked at with <Bob>")
    page.get_by_role("button", name="Approve").click()
    # It goes on by itself, and so does the page.
    expect(page.get_by_role("heading", level=1)).to_contain_text("succeeded", timeout=60_000)
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    page.screenshot(path=tmp_path / "run-done.png", full_page=True)
    page.get_by_role("link", name="The whole report").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Rolled back and validated")
    expect(page.get_by_text("approve-1280").first).to_be_visible()
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert waiting.heads() == ["first"]
    assert waiting.running() == OLD


def test_every_page_can_be_used_by_everybody_and_fits_a_phone(
    waiting: Ground, make_page: Callable[..., Page], axe: str, tmp_path: Path
) -> None:
    """Desktop and phone, light and dark; and without a script, all but the live parts."""
    run = waiting.run()
    decision = waiting.ask("GET", "/api/v1/decisions?limit=1")[1][0]["id"]
    paths = [
        "/", "/runs", "/decisions", "/deliveries", "/targets/shop", f"/runs/{run['id']}", f"/runs/{run['id']}/report",
        f"/deployments/{run['deployment']}", f"/decisions/{decision}", "/runs/none",
    ]  # fmt: skip
    faults = []
    for size, scheme in ((DESKTOP, "light"), (PHONE, "dark")):
        # The checker is run by the test, past the pages' own rule that no foreign script runs.
        page = make_page(size, color_scheme=scheme, bypass_csp=True)
        faults_of_login = sign_in(waiting, page, "read")
        for path in paths[:-1]:
            page.goto(faults_of_login + path)
            faults += grave_faults(page, axe)
            page.screenshot(path=tmp_path / f"{scheme}{path.replace('/', '-')}.png", full_page=True)
    assert faults == []
    plain = make_page(java_script_enabled=False)
    url = sign_in(waiting, plain, "operate")
    plain.get_by_label("Why").fill("a freeze")
    plain.get_by_role("button", name="Pause").click()
    expect(plain.get_by_text("a freeze")).to_be_visible()
    plain.goto(f"{url}/deliveries")
    expect(plain.get_by_role("row").nth(1)).to_be_visible()
