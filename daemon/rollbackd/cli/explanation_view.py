"""One decision on one screen: the row, the facts, the numbers behind them, the gates, and what would have changed the answer."""

import textwrap
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollbackd.cli.output import GATE_ICONS, columns, is_terminal, put, safe
from rollbackd.cli.times import ago, seconds_since
from rollbackd.core.decision import matrix_digest
from rollbackd.core.gates import GateState
from rollbackd.core.investigation import Investigation, investigation_lines
from rollbackd.core.matrix import Matrix
from rollbackd.core.records import StoredDecision
from rollbackd.core.what_if import GateWay, gate_way, nearest_turns
from rollbackd.core.wording import about
from rollbackd.settings import Target

# What of the evidence has a line of its own; whatever else there is follows as it is.
TOLD = {
    "started_at", "succeeded_at", "bake_time_s", "start_grace_s", "deploy", "migration", "heads_before", "heads_now",
    "heads_expected", "signals", "probes", "probes_failing_before", "names_firing_elsewhere", "metrics",
    "investigated_until", "slow_becomes_critical",
}  # fmt: skip
LONGEST_VALUE = 160
FACT_COLUMNS = ("fact", "value", "because", "would be")
NO_TURN = "the same"
Document = dict[str, Any]


def explanation(
    stored: StoredDecision, matrix: Matrix, target: Target | None, investigation: Investigation | None
) -> Document:
    """Everything that is known of a decision; thresholds and matrix are the configuration's of today."""
    document: Document = msgspec.to_builtins(stored)
    document.pop("inputs_json")
    way = gate_way(stored.decision.gates)
    names = [row.name for row in matrix.rows]
    row = stored.decision.row
    return {
        **document,
        "inputs": msgspec.json.decode(stored.inputs_json),
        "row_number": names.index(row) + 1 if row in names else None,
        "rows": len(names),
        "matrix_is_todays": matrix_digest(matrix) == stored.decision.matrix_sha256,
        "thresholds": _thresholds(target) if target is not None else {},
        "turns": msgspec.to_builtins(nearest_turns(matrix, stored.decision.facts)),
        "gate_way": msgspec.to_builtins(way),
        "investigation": msgspec.to_builtins(investigation),
    }


def show_explanation(out: Console, found: Document, now: datetime) -> None:
    """The same for a person."""
    decision = found["decision"]
    run = f" {safe(found['run'])}" if found["run"] else ""
    put(out, 0, f"[bold]{decision['action']}[/]: {safe(found['outcome'])}{run}")
    number = f"row {found['row_number']} of {found['rows']}" if found["row_number"] else "row"
    put(out, 2, f"{number}, [bold]{safe(decision['row'])}[/]: {safe(decision['why'])}")
    at = datetime.fromisoformat(found["at"])
    put(
        out,
        2,
        f"[dim]{safe(found['id'])}, {safe(found['target'])}, {at:%F %T} UTC, {ago(found['at'], now)}[/]",
    )
    if not found["matrix_is_todays"]:
        put(
            out, 2, "[yellow]the matrix has changed since: 'would be' is what today's says[/]", "[yellow]![/]"
        )
    _show_facts(out, found)
    put(out, 0, "[bold]evidence[/]")
    for text in _evidence(found):
        put(out, 2, safe(text))
    for text in decision["set_aside"]:
        put(out, 2, f"[dim]set aside:[/] {safe(text)}")
    _show_gates(out, found)


def show_investigation(out: Console, found: Investigation) -> None:
    """What was collected for it."""
    put(out, 0, "[bold]investigation[/]")
    for line in investigation_lines(found):
        put(out, 2, safe(line))


def _show_facts(out: Console, found: Document) -> None:
    """Each fact, why it is what it is, and the nearest other value that would have changed the answer."""
    decision = found["decision"]
    rows = [
        (name, value, decision["reasons"].get(name, ""), _turn_text(found["turns"].get(name), decision))
        for name, value in decision["facts"].items()
    ]
    if not is_terminal():
        for line in columns([FACT_COLUMNS, *rows]):
            out.print(safe(line))
        return
    listed = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(FACT_COLUMNS):
        listed.add_column(name, no_wrap=number < 2, overflow="fold")
    for name, value, reason, turn in rows:
        listed.add_row(name, value, safe(reason), Text(turn, "dim" if turn == NO_TURN else ""))
    out.print(listed)


def _turn_text(turn: Document | None, decision: Document) -> str:
    if turn is None:
        return NO_TURN
    if turn["action"] == decision["action"]:
        return f"{turn['action']} too, by {turn['row']}, if {turn['value']}"
    return f"{turn['action']}, if {turn['value']}"


def _evidence(found: Document) -> list[str]:
    """The numbers, each with the threshold that it was held against."""
    inputs, limits = found["inputs"], found["thresholds"]
    at = datetime.fromisoformat(found["at"])
    began = about(seconds_since(inputs["started_at"], at))
    went = "hasn't succeeded"
    if inputs["succeeded_at"]:
        went = f"succeeded {about(seconds_since(inputs['succeeded_at'], at))} before"
    lines = [
        f"deploy began {began} before this, {went}; bake time {inputs['bake_time_s']:g} s, start grace"
        f" {inputs['start_grace_s']:g} s"
        + (f", confirmed for {limits['confirm_for_s']:g} s" if limits else ""),
        f"CD system says of the deploy: {inputs['deploy']}; of its migration: {inputs['migration']}",
        f"revision before {_heads(inputs['heads_before'])}, now {_heads(inputs['heads_now'])},"
        f" expected {_heads(inputs['heads_expected'] or None)}",
    ]
    for name, state in inputs["probes"].items():
        rule = limits.get("probes", {}).get(name)
        text = f"probe {name}: {state}"
        if rule:
            text += (
                f" (failing after {rule['failures']} bad answers in a row, healthy after {rule['successes']} good ones,"
                f" asked every {rule['interval_s']:g} s)"
            )
        failing = ", failed before the deploy too" if name in inputs["probes_failing_before"] else ""
        lines.append(text + failing)
    for metric in inputs.get("metrics", ()):
        before = metric["before"].replace("_", " ")
        lines.append(
            f"metric {metric['name']}: {metric['state']}, before the deploy {before}; {metric['reading']}"
        )
    if inputs.get("investigated_until"):
        until = datetime.fromisoformat(inputs["investigated_until"])
        then = "is critical" if inputs["slow_becomes_critical"] else "asks a person"
        lines.append(f"investigated until {until:%H:%M:%S} UTC; what is still slow then {then}")
    for signal in inputs["signals"]:
        since = about(seconds_since(signal["started_at"], at))
        reason = f": {signal['reason']}" if signal["reason"] else ""
        ended = ", resolved" if signal["resolved_at"] else ""
        lines.append(
            f"signal {signal['name']}, {signal['category']}, {signal['severity']}, from {signal['source']}, since {since}"
            f"{ended}{reason}"
        )
    if inputs["names_firing_elsewhere"]:
        lines.append(
            f"fires where nothing was deployed too: {', '.join(sorted(inputs['names_firing_elsewhere']))}"
        )
    for name, value in inputs.items():
        if name not in TOLD and value not in (None, [], {}, ""):
            text = msgspec.json.encode(value).decode()
            lines.append(
                f"{name.replace('_', ' ')}: {textwrap.shorten(text, LONGEST_VALUE, placeholder=' …')}"
            )
    return lines


def _heads(found: list[str] | None) -> str:
    return "not known" if found is None else " + ".join(found) or "base"


def _show_gates(out: Console, found: Document) -> None:
    gates = found["decision"]["gates"]
    if not gates:
        put(out, 0, "[bold]gates[/]: this action needs none")
        return
    put(out, 0, "[bold]gates[/]")
    for gate in gates:
        icon, style = GATE_ICONS[gate["state"]]
        state = "" if gate["state"] == "met" else f"{gate['state']}: "
        mark = f"[{style or 'default'}]{icon}[/] gate {gate['gate']:<10}"
        if is_terminal() and gate["state"] in ("met", "opens"):
            # On one screen: what isn't in the way may be cut, --json has it whole.
            text = Text.from_markup(f"  {mark} {state}{safe(gate['reason'])}")
            out.print(text, no_wrap=True, overflow="ellipsis")
        else:
            put(out, 2, f"{state}{safe(gate['reason'])}", mark)
    put(out, 0, gate_sentence(msgspec.convert(found["gate_way"], GateWay)))


def gate_sentence(way: GateWay) -> str:
    """Which gate, met alone, would have let it run."""
    if way.verdict is GateState.MET:
        return "[green]no gate is in the way[/]"
    names = ", ".join(finding.gate for finding in way.in_the_way)
    if not way.single:
        return f"[yellow]no single gate would have let it run: {names} are in the way[/]"
    words = {
        GateState.MET: "it would have run by itself",
        GateState.NEEDS_PERSON: "it would have asked for approval",
    }
    told = "; ".join(f"with {one.gate} met alone {words[one.leads_to]}" for one in way.single)
    alone = {one.gate for one in way.single}
    others = ", ".join(finding.gate for finding in way.in_the_way if finding.gate not in alone)
    return f"[yellow]{told}{f' ({others})' if others else ''}[/]"


def _thresholds(target: Target) -> Document:
    policy = target.policy
    return {
        "mode": str(target.mode),
        "confirm_for_s": float(policy.confirm_for),
        "bake_time_s": float(policy.bake_time),
        "start_grace_s": float(policy.start_grace),
        "cool_down_s": float(policy.cool_down),
        "max_rollbacks_a_day": policy.max_rollbacks_a_day,
        "backup_level": policy.backup_level,
        "data_loss": str(policy.data_loss),
        "lock_budget_s": float(target.archive.lock_budget),
        "probes": {
            probe.name: {
                "interval_s": float(probe.interval),
                "failures": probe.failures,
                "successes": probe.successes,
            }
            for probe in target.probes
        },
    }
