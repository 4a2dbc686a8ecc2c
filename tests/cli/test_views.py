"""What is drawn, at 80 and at 120 columns and on a pipe: nothing sticks out, no id is folded, nothing is cut on a pipe."""

import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType
from tests.core.test_course import PLAN, record
from tests.core.test_matrix import facts

from rollbackd.cli.explanation_view import gate_sentence
from rollbackd.cli.history_view import history_rows, show_history
from rollbackd.cli.run_view import journal_lines, progress_line, run_lines, run_tree
from rollbackd.cli.status_view import by_urgency, changes, marks, screen, stale_marks
from rollbackd.core.course import course_of
from rollbackd.core.decision import Decision
from rollbackd.core.evidence import Level, Limit, Measurement, Quality, Source
from rollbackd.core.gates import Gate, GateFinding, GateState
from rollbackd.core.matrix import Action
from rollbackd.core.records import Run, StepRecord, StoredDecision
from rollbackd.core.run import RunState, StepPhase
from rollbackd.core.what_if import gate_way
from rollbackd.workflow.overview import describe_reading
from rollbackd.workflow.runs import describe_run

NOW = datetime(2026, 11, 22, 10, 1, tzinfo=UTC)
BEGAN = NOW - timedelta(seconds=60)
RUN_ID, DECISION_ID = "run-20261122T100000-9f3c21aa", "decision-20261122T095959-1b2c3d4e"
JOURNAL = [
    record(0, StepPhase.INTENT, 0),
    record(0, StepPhase.DONE, 2, seconds=2.0),
    record(1, StepPhase.INTENT, 2),
    record(1, StepPhase.FAILED, 5, error="the server is starting up"),
    record(1, StepPhase.INTENT, 15, attempt=2),
]
LONG = (
    "the downgrade was done, and what is there now doesn't pass: own:orders: 3 rows, and there should be none"
)


def a_run(state: RunState = RunState.RUNNING, **more: Any) -> Run:
    usual: dict[str, Any] = {
        "id": RUN_ID,
        "target": "shop",
        "database_key": "db",
        "deployment": "",
        "decision": DECISION_ID,
        "plan": msgspec.structs.replace(PLAN, from_heads=("0f1e2d3c4b5a",), to_heads=("a1b2c3d4e5f6",)),
        "plan_sha256": "",
        "state": state,
        "trigger": "manual",
        "requested_by": "local:ann",
        "reason": "checkout is down",
        "incident": "",
        "created_at": BEGAN,
        "started_at": None if state is RunState.AWAITING_APPROVAL else BEGAN,
    }
    return Run(**(usual | more))


def document(run: Run, journal: list[StepRecord], **more: Any) -> dict[str, Any]:
    """A run as `workflow/overview.py` describes it."""
    course = course_of(run.plan, journal)
    return {
        **describe_run(run),
        "journal": msgspec.to_builtins(journal),
        "step_texts": [step.text for step in course],
        "course": [
            {**msgspec.to_builtins(step), "took_s": step.took_s(NOW), "waited_s": step.waited_s(NOW)}
            for step in course
        ],
        "progress": None,
        "last_line": None,
        **more,
    }


def a_target(name: str, run: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A target as `workflow/overview.py` describes it."""
    return {
        "name": name,
        "service": name,
        "environment": "production",
        "mode": "automatic",
        "heads": ["0f1e2d3c4b5a"],
        "documented_at": BEGAN.isoformat(),
        "watching": None,
        "price_text": "",
        "bake_time_s": 1800.0,
        "probes": [],
        "decision": None,
        "paused": None,
        "run": run,
        "course": run["course"] if run else [],
        "progress": run["progress"] if run else None,
        "last_line": None,
        **more,
    }


def drawn(renderable: RenderableType, width: int) -> list[str]:
    out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    out.print(renderable)
    assert isinstance(out.file, io.StringIO)
    lines = out.file.getvalue().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_a_tree_has_each_step_with_its_time_waiting_told_apart_progress_and_the_last_statement(
    width: int,
) -> None:
    """The step under way was tried twice: 10 s between were waiting."""
    progress = {"done": 40_000, "total": 65_000, "unit": "rows"}
    line = {"run": RUN_ID, "step": 1, "at": NOW.isoformat(), "text": "SELECT  1,\n  2" + ", 3" * 50}
    lines = drawn(run_tree(document(a_run(), JOURNAL, progress=progress, last_line=line), NOW), width)
    assert lines[0] == f"{RUN_ID}  running  shop"
    assert lines[1] == "0f1e2d3c4b5a → a1b2c3d4e5f6  stop_writes  1 min (10 s waiting)"
    steps = [text for text in lines if text.startswith(("├──", "└──"))]
    assert [text[4] for text in steps[::2]] == ["✓", "·"]
    assert steps[0].endswith("2.0 s")
    assert steps[1].endswith("58 s, 10 s waiting")
    assert len({cell_len(text) for text in steps[:2]}) == 1
    assert any("62%, 40,000 of 65,000 rows" in text for text in lines)
    (statement,) = [text for text in lines if "SELECT" in text]
    assert "SELECT 1, 2, 3" in statement
    assert statement.endswith("…")


@pytest.mark.parametrize("width", [80, 120])
def test_a_run_that_waits_says_for_whom_and_each_command_is_whole(width: int) -> None:
    """For an approval, or for somebody who settles it."""
    waiting = a_run(
        RunState.AWAITING_APPROVAL,
        approval_reasons=("approval: the policy asks for it",),
        expires_at=NOW + timedelta(hours=3.5),
    )
    text = "\n".join(drawn(run_tree(document(waiting, []), NOW), width))
    assert "waits for somebody else than local:ann to approve it, for another 3 h" in text
    assert all(f"rollbackd {command} {RUN_ID}" in text for command in ("report", "approve", "deny"))
    assert "approval: the policy asks for it" in text
    held = document(
        a_run(RunState.HELD, statement=LONG), [*JOURNAL, record(1, StepPhase.HELD, 20, statement=LONG)]
    )
    text = "\n".join(drawn(run_tree(held, NOW), width))
    assert all(f"rollbackd {command} {RUN_ID}" in text for command in ("report", "resume", "abandon"))
    assert "20 s (10 s waiting), held for 40 s" in text


def test_on_a_pipe_a_run_is_plain_lines_with_the_whole_of_what_was_said() -> None:
    """For each record of the journal one; a long text stays one line."""
    run = document(a_run(), [*JOURNAL, record(1, StepPhase.HELD, 20, statement=LONG)])
    lines = journal_lines(run, 0)
    assert lines[1] == f"10:00:02 UTC  done    {run['step_texts'][0]}  2.0 s"
    assert lines[3].endswith("failed  back up the whole database: the server is starting up")
    assert lines[-1].endswith(f": {LONG}")
    assert journal_lines(run, 6) == []
    assert "held      back up the whole database  18 s, 10 s waiting: " + LONG in run_lines(run, NOW)


def test_the_progress_of_a_long_step_is_a_line_where_it_is_known() -> None:
    """And none where it isn't."""
    progress = {"done": 1.2e9, "total": 3.4e9, "unit": "bytes"}
    going = document(a_run(), JOURNAL, progress=progress)
    assert (
        progress_line(going, NOW) == "10:01:00 UTC  going   back up the whole database: 35%, 1.2 GB of 3.4 GB"
    )
    assert progress_line(document(a_run(), JOURNAL), NOW) == ""
    assert progress_line(document(a_run(RunState.SUCCEEDED), JOURNAL[:2], progress=progress), NOW) == ""


# -- status ------------------------------------------------------------------------------------------------------------


def test_what_waits_for_a_person_comes_first() -> None:
    """Then what runs, what is watched, what is paused, and the rest in the configuration's order."""
    held, running = document(a_run(RunState.HELD), JOURNAL), document(a_run(), JOURNAL)
    watching = {"version": "2", "id": "d", "started_at": BEGAN.isoformat(), "succeeded_at": None}
    found = [
        a_target("rest"),
        a_target("paused", paused={"who": "ann", "why": "w", "since": BEGAN.isoformat(), "until": None}),
        a_target("watched", watching=watching),
        a_target("runs", running),
        a_target("held", held),
        a_target("other"),
    ]
    assert [one["name"] for one in by_urgency(found)] == [
        "held",
        "runs",
        "watched",
        "paused",
        "rest",
        "other",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_says_what_is_watched_its_price_and_whether_a_daemon_runs(width: int) -> None:
    """What is folded stands under its own beginning."""
    price = "back now: 14 s, 80 ms of lock, 0 rows lost, the old release works on this schema; 1,204 rows only the new schema holds"
    watching = {
        "version": "2026.11.3",
        "id": "d",
        "started_at": (NOW - timedelta(minutes=3)).isoformat(),
        "succeeded_at": (NOW - timedelta(minutes=2)).isoformat(),
        "investigating": {
            "decision": "decision-1",
            "since": (NOW - timedelta(minutes=1)).isoformat(),
            "until": datetime(2026, 11, 22, 12, 15, tzinfo=UTC).isoformat(),
        },
    }
    probe = Measurement(name="health", at=NOW, quality=Quality.OK, healthy=False, detail="answered 503")
    limits = (Limit(level=Level.DEGRADED, value=0.5),)
    metric = Measurement(
        name="p95",
        at=NOW,
        quality=Quality.OK,
        source=Source.PROMETHEUS,
        level=Level.DEGRADED,
        value=0.75,
        limits=limits,
    )
    readings = [msgspec.json.decode(msgspec.json.encode(describe_reading(one))) for one in (probe, metric)]
    shop = a_target("shop", watching=watching, price_text=price, probes=readings)
    lines = drawn(screen([shop], NOW, by_daemon=False), width)
    assert "1 watched · 0 running · nothing waits for a person" in lines[0]
    assert lines[1] == "! no daemon answers: this is what the store says"
    assert "  ◉ watching 2026.11.3 for 3 min; 28 min of its bake time left" in lines
    at = next(number for number, line in enumerate(lines) if line.startswith("  ↩ back now"))
    assert lines[at + 1].startswith("    ")
    assert lines[at + 1][4] != " "
    assert "  ✗ probe health: answered 503, just now" in lines
    assert "  ✗ metric p95: 0.75; degraded above 0.5, just now" in lines
    slow = next(number for number, line in enumerate(lines) if line.startswith("  ! slow for 1 min"))
    said = " ".join(line.strip() for line in lines[slow : slow + 2])
    assert said.startswith("! slow for 1 min, investigated until 12:15 UTC: rollbackd explain decision-1")


def test_of_many_targets_at_rest_a_watch_shows_as_many_as_fit_and_says_how_many_it_does_not() -> None:
    """Never one that is busy is left out."""
    found = [a_target(f"t{n}") for n in range(30)] + [a_target("busy", document(a_run(), JOURNAL))]
    lines = drawn(screen(found, NOW, by_daemon=True, most_at_rest=4), 80)
    assert lines[2].startswith("busy  production")
    assert [line.split()[0] for line in lines if re.match(r"t\d+ ", line)] == ["t0", "t1", "t2", "t3"]
    assert lines[-1] == "and 26 more at rest; 'rollbackd status' lists them all"


def test_a_watch_tells_each_step_once_and_nothing_that_changes_with_the_time_alone() -> None:
    """Steps that began and ended between two looks too, before the run's own end."""
    before = [a_target("shop", document(a_run(), JOURNAL[:1]))]
    done = [record(n, phase, n) for n in range(3) for phase in (StepPhase.INTENT, StepPhase.DONE)]
    after = [a_target("shop", document(a_run(RunState.SUCCEEDED, finished_at=NOW), done))]
    told = changes(marks(before), marks(after))
    assert [line.split(None, 2)[1] for line in told] == ["step", "step", "step", "run"]
    assert told[-1] == f"shop  run       {RUN_ID} succeeded"
    assert changes(marks(after), marks(after)) == []
    # Whoever begins to watch isn't told the steps of what has ended.
    assert [line.split(None, 2)[1] for line in changes(stale_marks(after), marks(after))] == ["state", "run"]


# -- history -----------------------------------------------------------------------------------------------------------


def a_decision() -> StoredDecision:
    decision = Decision(
        row="application-fails-after-good-migration",
        action=Action.ROLL_BACK_WITH_DEPLOYMENT,
        why="The migration went well and the new release doesn't work: both go back.",
        facts=facts(application="failing"),
        reasons={},
        set_aside=(),
        next_steps=(),
        hold=False,
        matrix_sha256="",
    )
    return StoredDecision(
        id=DECISION_ID,
        target="shop",
        deployment="",
        at=BEGAN - timedelta(seconds=1),
        decision=decision,
        inputs_json=b"{}",
        outcome="refused: the target is in shadow",
    )


def told_history(width: int, *, is_terminal: bool) -> list[str]:
    ended = a_run(RunState.SUCCEEDED, finished_at=NOW - timedelta(seconds=46))
    rows = history_rows([ended], [a_decision()], 20)
    out = Console(file=io.StringIO(), width=width, color_system=None, soft_wrap=not is_terminal)
    show_history(out, rows, is_terminal=is_terminal)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "lines_each"), [(80, 3), (120, 2), (240, 1)])
def test_history_is_as_dense_as_the_terminal_is_wide(width: int, lines_each: int) -> None:
    """Ids are whole, columns aligned, and what is too long is cut at the reason."""
    lines = told_history(width, is_terminal=True)
    assert len(lines) == 1 + 2 * lines_each
    assert all(cell_len(line) <= width for line in lines)
    header, run, decision = lines[0], lines[1], lines[1 + lines_each]
    assert run.startswith("11-22 10:00:00  run ")
    assert header.index("outcome") == run.index("succeeded") == decision.index("refused")
    assert "14 s" in run
    assert any(RUN_ID in line for line in lines)
    assert any(DECISION_ID in line for line in lines)
    assert any("0f1e2d3c4b5a → a1b2c3d4e5f6" in line for line in lines)


def test_history_on_a_pipe_cuts_nothing() -> None:
    """One line each, with the whole reason and what became of it."""
    lines = told_history(2_000, is_terminal=False)
    assert len(lines) == 3
    assert lines[2].endswith("both go back. (the target is in shadow)")
    assert all(line == line.rstrip() for line in lines)


# -- explain -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "sentence"),
    [
        ({"mode": "met"}, "no gate is in the way"),
        ({"mode": "refused"}, "with mode met alone it would have run by itself"),
        (
            {"mode": "refused", "lock": "needs_person"},
            "with mode met alone it would have asked for approval (lock)",
        ),
        (
            {"mode": "refused", "pause": "refused"},
            "no single gate would have let it run: mode, pause are in the way",
        ),
    ],
)
def test_what_stood_in_the_way_is_one_sentence(states: dict[str, str], sentence: str) -> None:
    """Which gate alone would have let it run, or that none would."""
    found = tuple(GateFinding(gate=Gate(g), state=GateState(s), reason="why") for g, s in states.items())
    assert sentence in gate_sentence(gate_way(found))
