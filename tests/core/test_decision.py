"""Decisions: the same inputs give the same record, byte for byte; and when one is acted on."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from rollbackd.core.assess import Assessment
from rollbackd.core.decision import Decision, decide, is_ripe, matrix_digest
from rollbackd.core.facts import Application, Bug, Data, Errors, Facts, Migration, Performance, Watch
from rollbackd.core.matrix import Action, Row, load_matrix

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
MATRIX = load_matrix(
    {
        "row": [
            {
                "name": "bug",
                "action": "fix_forward",
                "why": "a bug",
                "when": {"bug": "reported"},
                "next_steps": ["mend it"],
            },
            {"name": "last", "action": "keep", "why": "well"},
        ]
    },
    "m.toml",
)


def assessment(bug: Bug = Bug.REPORTED, reasons: dict[str, str] | None = None) -> Assessment:
    facts = Facts(
        migration=Migration.APPLIED,
        errors=Errors.NONE,
        performance=Performance.NORMAL,
        bug=bug,
        data=Data.INTACT,
        application=Application.HEALTHY,
        watch=Watch.BAKING,
    )
    return Assessment(facts=facts, reasons=reasons or {"bug": "x", "data": "y"}, set_aside=("signal S: old",))


def test_a_decision_records_the_row_the_facts_and_why() -> None:
    decision, row = decide(MATRIX, assessment())
    assert row is MATRIX.rows[0]
    assert (decision.row, decision.action, decision.why) == ("bug", Action.FIX_FORWARD, "a bug")
    assert decision.next_steps == ("mend it",)
    assert decision.set_aside == ("signal S: old",)
    assert decision.facts == assessment().facts
    assert decision.matrix_sha256 == matrix_digest(MATRIX)
    assert decide(MATRIX, assessment(Bug.NONE))[0].row == "last"


def test_the_order_in_which_reasons_were_found_does_not_show() -> None:
    first, _ = decide(MATRIX, assessment(reasons={"bug": "x", "data": "y"}))
    second, _ = decide(MATRIX, assessment(reasons={"data": "y", "bug": "x"}))
    assert first.canonical() == second.canonical()


def test_a_stored_decision_comes_back_byte_for_byte() -> None:
    canonical = decide(MATRIX, assessment())[0].canonical()
    assert msgspec.json.decode(canonical, type=Decision).canonical() == canonical


def test_another_process_with_another_hash_seed_decides_the_same_byte_for_byte() -> None:
    script = (
        "import sys, tomllib; from pathlib import Path\n"
        "from rollbackd.core.assess import *; from rollbackd.core.decision import decide\n"
        "from rollbackd.core.evidence import *; from rollbackd.core.events import *; from datetime import *\n"
        "from rollbackd.core.matrix import load_matrix\n"
        "t = datetime(2026, 11, 22, 10, tzinfo=UTC); p = ProbeState\n"
        "s = [Signal(source='s', key=k, name=k, category=Category.ERRORS, severity=Severity.WARNING, started_at=t) for k in 'xyz']\n"
        "e = Evidence(started_at=t, bake_time_s=9, start_grace_s=0, deploy=DeployWord.NOTHING, migration=DeployWord.NOTHING,\n"
        "  heads_before=('b','a'), heads_now=('d','c'), signals=tuple(s), names_firing_elsewhere=frozenset('xqw'),\n"
        "  probes={k: p.FAILING for k in ('web','db','api')}, probes_failing_before=frozenset({'db','q','r'}))\n"
        "m = load_matrix(tomllib.loads(Path('config/decision-matrix.toml').read_text()), 'm')\n"
        "sys.stdout.buffer.write(decide(m, assess(e, t))[0].canonical())\n"
    )
    from pathlib import Path

    root = Path(__file__).parents[2]
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env={"PYTHONPATH": str(root / "daemon"), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    (answer,) = answers
    assert msgspec.json.decode(answer, type=Decision).row == "application-fails-after-good-migration"


def test_the_digest_of_a_matrix_changes_with_any_row() -> None:
    other = load_matrix({"row": [{"name": "last", "action": "keep", "why": "well"}]}, "m.toml")
    assert matrix_digest(other) != matrix_digest(MATRIX)


@pytest.mark.parametrize(
    ("at_once", "matched_for_s", "ripe"),
    [
        (False, 0, False),
        (False, 29.9, False),
        (False, 30, True),
        # Waits for no more evidence.
        (True, 0, True),
    ],
)
def test_a_row_is_acted_on_once_it_has_matched_for_long_enough(
    at_once: bool, matched_for_s: float, ripe: bool
) -> None:
    row = Row(name="r", action=Action.ROLL_BACK, why="w", at_once=at_once)
    assert is_ripe(row, NOW - timedelta(seconds=matched_for_s), 30.0, NOW) is ripe
