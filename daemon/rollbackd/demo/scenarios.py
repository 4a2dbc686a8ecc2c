"""The scenarios: each deploys a release that goes wrong in its own way, waits for rollbackd, and checks every claim."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rollbackd.demo.shop_layout import BASE_RELEASE, BASE_REVISION
from rollbackd.demo.stage import Rows, Shop, Stage
from rollbackd.errors import RollbackdError

PATIENCE_S = 60.0
POLL_S = 0.1
ORDERS = 25
Show = Callable[[str, str], None]


class ClaimFailedError(RollbackdError):
    """Something that the demo claims isn't so."""


@dataclass
class Telling:
    """One scenario while it is told: what is shown, what was checked."""

    stage: Stage
    shop: Shop
    show: Show
    claims: list[str] = field(default_factory=list)
    run_id: str = ""
    report: str = ""

    def claim(self, text: str, holds: bool) -> None:
        """Check a claim; a demo that claims what isn't so fails at once."""
        if not holds:
            raise ClaimFailedError(f"{self.shop.name}: this is not so: {text}")
        self.claims.append(text)
        self.show("claim", text)


@dataclass(frozen=True)
class Scenario:
    """One scenario: what happens, in which environment, told by which function."""

    name: str
    summary: str
    environment: str
    tell: Callable[[Telling], Awaitable[None]]


# -- the deploy --------------------------------------------------------------------------------------------------------


async def _deploy(telling: Telling, release: str) -> bool:
    """Deploy as a CD system does: announce, pass the gate, migrate, start. False when the migration failed."""
    stage, shop = telling.stage, telling.shop
    said = {"version": release, "previous_version": BASE_RELEASE, "deployment": f"{shop.name}-1"}
    telling.claim(
        "the event deploy.started is recorded (202)", await stage.send(shop, "deploy.started", **said) == 202
    )
    telling.show("stage", "the gate documents the state, takes a backup and proves it")
    gate = await stage.api("POST", f"/api/v1/targets/{shop.name}/gate", body=said)
    proved = f"backup {gate['backup'].get('backup')}, L{gate['backup'].get('level')}, {gate['backup'].get('rows'):,} rows"
    telling.claim(f"the gate says go ({proved})", gate["go"] and gate["backup"]["level"] == 4)
    await stage.send(shop, "migration.started", **said)
    telling.show("stage", f"alembic upgrade head, release {release}")
    migrated = await stage.shopctl(shop, "migrate", release) == 0
    await stage.send(shop, "migration.applied" if migrated else "migration.failed", **said)
    if not migrated:
        await stage.send(shop, "deploy.failed", **said, reason="the migration failed")
        return False
    await stage.shopctl(shop, "start", release)
    await stage.send(shop, "deploy.succeeded", **said)
    return True


async def _before(telling: Telling) -> tuple[dict[str, list[str]], Rows]:
    """Start the old release, take some orders, and remember every row."""
    stage, shop = telling.stage, telling.shop
    telling.show("stage", f"the shop runs release {BASE_RELEASE}")
    telling.claim("the old release starts", await stage.shopctl(shop, "start", BASE_RELEASE) == 0)
    await stage.order(shop, 5)
    columns = await stage.columns(shop.database)
    rows = await stage.rows(shop.database, columns)
    telling.show("stage", f"{sum(len(found) for found in rows.values()):,} rows in {len(rows)} tables")
    return columns, rows


# -- waiting for rollbackd ---------------------------------------------------------------------------------------------


async def _decision(telling: Telling, row: str) -> dict[str, Any]:
    """Wait until this row decided."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        for decision in await telling.stage.api("GET", f"/api/v1/decisions?target={telling.shop.name}"):
            if decision["decision"]["row"] == row:
                action = decision["decision"]["action"]
                telling.claim(f"row {row} decided: {action}", True)
                found: dict[str, Any] = decision
                return found
        await asyncio.sleep(POLL_S)
    seen = await telling.stage.api("GET", f"/api/v1/decisions?target={telling.shop.name}")
    raise ClaimFailedError(
        f"{row} didn't decide within {PATIENCE_S:g} s; decided was {[d['decision']['row'] for d in seen]}"
    )


async def _run(telling: Telling, *states: str) -> dict[str, Any]:
    """Follow the newest run until it is in one of these states, showing each step."""
    stage, shop = telling.stage, telling.shop
    until = time.monotonic() + PATIENCE_S
    shown = 0
    run: dict[str, Any] = {}
    while time.monotonic() < until:
        runs = await stage.api("GET", f"/api/v1/runs?target={shop.name}&limit=1")
        if runs:
            run = await stage.api("GET", f"/api/v1/runs/{runs[0]['id']}")
            telling.run_id = run["id"]
            shown = _show_steps(telling, run, shown)
            if run["state"] in states:
                return run
            if run["state"] in ("failed", "held", "succeeded"):
                break
        await asyncio.sleep(POLL_S)
    raise ClaimFailedError(
        f"the run is {run.get('state', 'not there')} ({run.get('statement', '')}), expected was {' or '.join(states)}"
    )


def _show_steps(telling: Telling, run: dict[str, Any], shown: int) -> int:
    """Show what the journal says since the last look; returns how much of it was shown."""
    for record in run["journal"][shown:]:
        seconds = record["evidence"].get("seconds")
        took = f" ({seconds:.2f} s)" if seconds else ""
        telling.show(f"step:{record['phase']}", f"{run['step_texts'][record['step']]}{took}")
    return len(run["journal"])


# -- checking ----------------------------------------------------------------------------------------------------------


async def _check_rows(telling: Telling, columns: dict[str, list[str]], expected: Rows) -> None:
    """The database must be, row by row, what it must be: same tables, same columns, same rows."""
    stage, shop = telling.stage, telling.shop
    now = await stage.columns(shop.database)
    telling.claim("tables and columns are those from before the deploy", now == columns)
    rows = await stage.rows(shop.database, columns)
    different = [table for table in expected if rows[table] != expected[table]]
    total = sum(len(found) for found in rows.values())
    telling.claim(f"all {total:,} rows are equal, row by row", not different)
    telling.claim(
        f"the version table says {BASE_REVISION}", await stage.heads(shop.database) == [BASE_REVISION]
    )


async def _check_application(telling: Telling) -> None:
    stage, shop = telling.stage, telling.shop
    running = await stage.shopctl(shop, "is-running", BASE_RELEASE) == 0
    telling.claim(
        f"release {BASE_RELEASE} runs again and is healthy",
        running and await stage.get(shop, "/health") == 200,
    )
    telling.claim("it takes orders", await stage.order(shop, 3) == 3)


async def _check_report(telling: Telling, *, status: str) -> dict[str, Any]:
    """The report must say what was checked here; it is kept for the reader."""
    stage = telling.stage
    report: dict[str, Any] = await stage.api("GET", f"/api/v1/runs/{telling.run_id}/report?format=json")
    telling.claim(f"the report says {status}", report["status"] == status)
    path = stage.folder / f"{telling.run_id}.html"
    await stage.rollbackd("report", telling.run_id, "--format", "html", "--output", str(path))
    telling.report = str(await stage.keep(path, path.name))
    return report


async def _check_brought_back(telling: Telling, release: str, what: dict[str, list[str]], lost: Rows) -> None:
    """Migrate again, as the fixed release will, and bring back what the downgrade took away; twice, as people do."""
    stage, shop = telling.stage, telling.shop
    telling.show("stage", "the fixed migration is in; rollbackd restore brings the data back")
    telling.claim("the database is migrated again", await stage.shopctl(shop, "migrate", release) == 0)
    await stage.rollbackd("restore", telling.run_id, "--yes")
    rows = await stage.rows(shop.database, what)
    total = sum(len(found) for found in lost.values())
    # What was sold meanwhile stands beside it.
    back = all(not Counter(found) - Counter(rows[table]) for table, found in lost.items())
    telling.claim(f"what the downgrade took away is back: {total:,} rows with their values", back)
    again = json.loads(await stage.rollbackd("restore", telling.run_id, "--yes", "--json"))
    telling.claim("bringing it back twice does nothing more", again["restored"] == 0)


async def _traffic(
    telling: Telling, columns: dict[str, list[str]]
) -> tuple[Rows, dict[str, list[str]], Rows]:
    """Let the new release take orders; remember the rows as the old schema shows them, and those that only the new has."""
    stage, shop = telling.stage, telling.shop
    taken = await stage.order(shop, ORDERS)
    telling.show("stage", f"customers placed {taken} orders with the new release")
    now = await stage.columns(shop.database)
    at_risk = {table: names for table, names in now.items() if columns.get(table) != names}
    expected = await stage.rows(shop.database, columns)
    return expected, at_risk, await stage.rows(shop.database, at_risk)


# -- the scenarios -----------------------------------------------------------------------------------------------------


async def application_fails(telling: Telling) -> None:
    """A good migration, and an application that doesn't work."""
    columns, _ = await _before(telling)
    await _deploy(telling, "2026.11.4")
    expected, at_risk, lost = await _traffic(telling, columns)
    telling.show("stage", "the new release's health page answers 503")
    await _decision(telling, "application-fails-after-good-migration")
    await _run(telling, "succeeded")
    await _check_rows(telling, columns, expected)
    await _check_report(telling, status="succeeded")
    await _check_application(telling)
    await _check_brought_back(telling, "2026.11.4", at_risk, lost)


async def production_errors(telling: Telling) -> None:
    """Everything looks healthy, and an alert says that half of the requests fail."""
    columns, _ = await _before(telling)
    await _deploy(telling, "2026.11.3")
    expected, at_risk, lost = await _traffic(telling, columns)
    telling.show("stage", "Alertmanager posts a critical alert")
    status = await telling.stage.send_alert(
        telling.shop, "OrdersFailing", "critical", "Half of GET /orders ends in 500"
    )
    telling.claim("the alert is recorded (202)", status == 202)
    await _decision(telling, "production-errors-after-deploy")
    await _run(telling, "succeeded")
    await _check_rows(telling, columns, expected)
    await _check_report(telling, status="succeeded")
    await _check_application(telling)
    await _check_brought_back(telling, "2026.11.3", at_risk, lost)


async def production_approval(telling: Telling) -> None:
    """Production: rollbackd plans, opens an incident record and waits; another identity approves."""
    stage = telling.stage
    columns, _ = await _before(telling)
    await _deploy(telling, "2026.11.4")
    expected, at_risk, lost = await _traffic(telling, columns)
    await _decision(telling, "application-fails-after-good-migration")
    run = await _run(telling, "awaiting_approval")
    telling.claim(
        "it waits for an approval, and nothing was changed",
        await stage.heads(telling.shop.database) != [BASE_REVISION],
    )
    telling.claim("an incident record was opened", run["incident"].startswith("incident-"))
    refused = False
    with contextlib.suppress(RollbackdError):
        await stage.api("POST", f"/api/v1/runs/{run['id']}/approve", who="alice", body={})
        refused = True
    telling.claim("alice, who may operate and not approve, is refused", not refused)
    telling.show("stage", "bob looks at the plan and approves it")
    word = {"plan_sha256": run["plan_sha256"], "reason": "checkout is down"}
    await stage.api("POST", f"/api/v1/runs/{run['id']}/approve", who="bob", body=word)
    await _run(telling, "succeeded")
    await _check_rows(telling, columns, expected)
    report = await _check_report(telling, status="succeeded")
    telling.claim("the report names who approved", report["approved_by"] == ["bob"])
    await _check_application(telling)
    await _check_brought_back(telling, "2026.11.4", at_risk, lost)


async def migration_failed_clean(telling: Telling) -> None:
    """The migration fails and PostgreSQL undoes it whole: nothing to downgrade."""
    columns, rows = await _before(telling)
    migrated = await _deploy(telling, "2026.12.0-clean")
    telling.claim("the migration failed", not migrated)
    await _decision(telling, "migration-failed-clean")
    run = await _run(telling, "succeeded")
    telling.claim("no downgrade was run", run["way_back"] == "redeploy_only")
    await _check_rows(telling, columns, rows)
    report = await _check_report(telling, status="succeeded")
    nothing = any("Nothing to downgrade" in step["text"] for step in report["next_steps"])
    telling.claim("the report says that there was nothing to downgrade", nothing)
    await _check_application(telling)


async def migration_failed_midway(telling: Telling) -> None:
    """Of two revisions the first was committed, the second failed."""
    columns, rows = await _before(telling)
    migrated = await _deploy(telling, "2026.12.1-midway")
    telling.claim("the migration failed", not migrated)
    await _decision(telling, "migration-failed-midway")
    await _run(telling, "succeeded")
    await _check_rows(telling, columns, rows)
    await _check_report(telling, status="succeeded")
    await _check_application(telling)


async def migration_failed_inside(telling: Telling) -> None:
    """The schema changed and the stamp didn't: rollbackd stops at once and says what stands where."""
    stage, shop = telling.stage, telling.shop
    columns, rows = await _before(telling)
    migrated = await _deploy(telling, "2026.12.2-inside")
    telling.claim("the migration failed", not migrated)
    await _decision(telling, "migration-failed-inside-a-revision")
    run = await _run(telling, "held")
    telling.claim("the run is held and names what differs", "schema" in run["statement"])
    statements = [s for revision in run["plan"]["revisions"] for s in revision["statements"]]
    telling.claim(f"the inverse statements are shown: {'; '.join(statements)}", bool(statements))
    telling.show("stage", "a person looks, and drops the half-made index by hand")
    await stage.execute(shop.database, "DROP INDEX ix_orders_status_placed_at")
    await stage.api("POST", f"/api/v1/runs/{run['id']}/resume", body={})
    await _run(telling, "succeeded")
    await _check_rows(telling, columns, rows)
    await _check_report(telling, status="succeeded")


async def minor_bug(telling: Telling) -> None:
    """Somebody reports a slip in the migration that breaks nothing: fix forward."""
    stage, shop = telling.stage, telling.shop
    columns, rows = await _before(telling)
    await _deploy(telling, "2026.11.6")
    said = {
        "category": "bug",
        "severity": "warning",
        "name": "misspelt_comment",
        "reason": "a typing error in a comment",
    }
    telling.claim(
        "the report of a bug is recorded (202)", await stage.send(shop, "signal.firing", **said) == 202
    )
    decision = await _decision(telling, "minor-bug-in-the-migration")
    telling.claim("the action is fix_forward", decision["decision"]["action"] == "fix_forward")
    telling.claim("no run was made", not await stage.api("GET", f"/api/v1/runs?target={shop.name}"))
    kept = await stage.rows(shop.database, columns)
    telling.claim(
        "every row of before is there still",
        all(kept[table] == rows[table] for table in rows if table != "alembic_version"),
    )
    telling.claim("the new release runs on", await stage.shopctl(shop, "is-running", "2026.11.6") == 0)


async def nothing_moved(telling: Telling) -> None:
    """A deploy without a migration whose application fails: the old release is put back, the database left alone."""
    columns, rows = await _before(telling)
    await _deploy(telling, "2026.11.5")
    await _decision(telling, "application-fails-nothing-moved")
    run = await _run(telling, "succeeded")
    telling.claim("no downgrade was run", run["way_back"] == "redeploy_only")
    await _check_rows(telling, columns, rows)
    await _check_report(telling, status="succeeded")
    await _check_application(telling)


async def data_loss(telling: Telling) -> None:
    """The migration deletes rows that it shouldn't have; somebody misses them: back, and the rows brought back."""
    stage, shop = telling.stage, telling.shop
    columns, rows = await _before(telling)
    await _deploy(telling, "2026.11.7")
    left = (await stage.rows(shop.database, columns))["reviews"]
    lost = len(rows["reviews"]) - len(left)
    telling.show("stage", f"the migration deleted {lost:,} of {len(rows['reviews']):,} reviews")
    await stage.execute(shop.database, "DELETE FROM reviews WHERE id = (SELECT max(id) FROM reviews)")
    after = (await stage.rows(shop.database, columns))["reviews"]
    withdrawn = [row for row in left if row not in after]
    telling.show("stage", "a customer withdraws a review; that is no loss")
    said = {
        "category": "data_loss",
        "severity": "critical",
        "name": "reviews_missing",
        "reason": "reviews are gone",
    }
    telling.claim(
        "the report of lost rows is recorded (202)", await stage.send(shop, "signal.firing", **said) == 202
    )
    decision = await _decision(telling, "data-loss-by-the-migration")
    telling.claim(
        "the migration, run again on the backup, was seen to delete them",
        f"{lost:,} of public.reviews" in decision["decision"]["reasons"]["data"],
    )
    await _run(telling, "succeeded")
    expected = {**rows, "reviews": [row for row in rows["reviews"] if row not in withdrawn]}
    await _check_rows(telling, columns, expected)
    telling.claim("what the customer withdrew stays withdrawn", len(withdrawn) == 1)
    await _check_report(telling, status="succeeded")
    await _check_application(telling)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("application-fails", "a good migration, a broken application: downgrade and old release back", "staging", application_fails),
        Scenario("production-errors", "an alert says that requests fail: downgrade and old release back", "staging", production_errors),
        Scenario("production-approval", "production: planned at once, run when another identity approves", "production", production_approval),
        Scenario("migration-failed-clean", "the migration failed and was undone: nothing to downgrade", "staging", migration_failed_clean),
        Scenario("migration-failed-midway", "some revisions are in: those are taken off", "staging", migration_failed_midway),
        Scenario("migration-failed-inside", "neither old nor new: held for a person", "staging", migration_failed_inside),
        Scenario("minor-bug", "a slip that breaks nothing: fix forward", "staging", minor_bug),
        Scenario("data-loss", "the migration deleted rows: back, and the rows brought back from the backup", "staging", data_loss),
        Scenario("nothing-moved", "no revision moved: never a downgrade", "staging", nothing_moved),
    )
}  # fmt: skip


def describe_result(telling: Telling, scenario: Scenario, seconds: float) -> dict[str, Any]:
    """A scenario's result for machines."""
    return {
        "scenario": scenario.name,
        "seconds": round(seconds, 2),
        "claims": telling.claims,
        "run": telling.run_id,
        "report": telling.report,
    }
