"""Gates: the permissions that an action needs. "The deploy is bad" and "the database may be downgraded" are two decisions."""

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec


class Gate(StrEnum):
    """The closed list of permissions."""

    MODE = "mode"
    PAUSE = "pause"
    FREEZE = "freeze"
    PLAN = "plan"
    REHEARSAL = "rehearsal"
    BACKUP = "backup"
    DATA_LOSS = "data_loss"
    LOCK = "lock"
    WRITES = "writes"
    INCIDENT = "incident"
    ONCE = "once"
    COOL_DOWN = "cool_down"
    BREAKER = "breaker"
    APPROVAL = "approval"


class GateState(StrEnum):
    """`refused` ends the matter; `needs_person` makes the run wait for an approval; `opens` will be seen to by rollbackd."""

    MET = "met"
    OPENS = "opens"
    NEEDS_PERSON = "needs_person"
    REFUSED = "refused"


class GateFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One gate, its state and the reason in a sentence."""

    gate: Gate
    state: GateState
    reason: str


class Mode(StrEnum):
    """How much a target lets rollbackd do by itself."""

    SHADOW = "shadow"
    APPROVAL = "approval"
    AUTOMATIC = "automatic"


class DataLossPolicy(StrEnum):
    """What must hold before rows or columns may be destroyed by a downgrade."""

    REFUSE = "refuse"
    ASK = "ask"
    ARCHIVED = "archived"


class GatePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a target's policy that gates read; `approval_required` overrides a mode of automatic."""

    mode: Mode
    approval_required: bool
    incident_required: bool
    data_loss: DataLossPolicy
    backup_level: int
    cool_down_s: float
    max_rollbacks_a_day: int
    lock_budget_s: float = 5.0


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody stopped all automation of a target (or of all): who, why, until when (None: until unpaused)."""

    target: str
    who: str
    why: str
    since: datetime
    until: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it still stops anything at `now`."""
        return self.until is None or now < self.until


class Freeze(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time in which nothing automatic may change the database."""

    since: datetime
    until: datetime
    why: str


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
    """What gates need to know of an earlier run on the same target."""

    run: str
    created_at: datetime
    trigger: str
    rolled_back_from: tuple[str, ...]
    succeeded: bool


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the gates: by whom, on which plan, in which circumstances."""

    by_person: bool
    blockers: tuple[str, ...]
    loses_data: tuple[str, ...]
    loss_is_archived: bool
    from_heads: tuple[str, ...]
    downgrades: bool
    stops_writes: bool
    drains: bool = False
    rehearsed: str = ""
    not_rehearsed_because: str = ""
    lock_s: float = 0.0
    backup_reachable_level: int
    incident: str
    pauses: tuple[Pause, ...] = ()
    freezes: tuple[Freeze, ...] = ()
    past_runs: tuple[PastRun, ...] = ()


def judge_gates(policy: GatePolicy, ask: Ask, now: datetime) -> tuple[GateFinding, ...]:
    """Judge every gate; each is reported, met or not, so that `explain` can show what spoke against."""
    findings = [_mode(policy, ask), _pause(ask, now), _freeze(ask, now), _plan(ask)]
    if ask.downgrades:
        findings += [
            _rehearsal(ask),
            _backup(policy, ask),
            _data_loss(policy, ask),
            _lock(policy, ask),
            _writes(ask),
        ]
    findings += [_incident(policy, ask), _once(ask), _cool_down(policy, ask, now), _breaker(policy, ask, now)]
    findings.append(_approval(policy, ask))
    return tuple(findings)


def verdict(findings: tuple[GateFinding, ...]) -> GateState:
    """Worst wins: refused, then needs_person, else met."""
    states = {finding.state for finding in findings}
    if GateState.REFUSED in states:
        return GateState.REFUSED
    return GateState.NEEDS_PERSON if GateState.NEEDS_PERSON in states else GateState.MET


def _found(gate: Gate, state: GateState, reason: str) -> GateFinding:
    return GateFinding(gate=gate, state=state, reason=reason)


def _mode(policy: GatePolicy, ask: Ask) -> GateFinding:
    if ask.by_person:
        return _found(Gate.MODE, GateState.MET, "asked for by a person")
    if policy.mode is Mode.SHADOW:
        return _found(
            Gate.MODE,
            GateState.REFUSED,
            "the target is in shadow: rollbackd says what it would do, and does nothing",
        )
    return _found(Gate.MODE, GateState.MET, f"the target's mode is {policy.mode}")


def _pause(ask: Ask, now: datetime) -> GateFinding:
    for pause in ask.pauses:
        if pause.holds(now) and not ask.by_person:
            until = f"until {pause.until:%Y-%m-%d %H:%M} UTC" if pause.until else "until it is lifted"
            return _found(
                Gate.PAUSE, GateState.REFUSED, f"{pause.who} paused automation {until}: {pause.why}"
            )
    return _found(
        Gate.PAUSE,
        GateState.MET,
        "automation isn't paused" if not ask.by_person else "a pause stops automation only",
    )


def _freeze(ask: Ask, now: datetime) -> GateFinding:
    for freeze in ask.freezes:
        if freeze.since <= now < freeze.until:
            reason = f"frozen until {freeze.until:%Y-%m-%d %H:%M} UTC: {freeze.why}"
            return _found(Gate.FREEZE, GateState.NEEDS_PERSON, reason)
    return _found(Gate.FREEZE, GateState.MET, "no freeze covers this time")


def _plan(ask: Ask) -> GateFinding:
    if ask.blockers:
        return _found(Gate.PLAN, GateState.REFUSED, "; ".join(ask.blockers))
    return _found(Gate.PLAN, GateState.MET, "nothing in the plan speaks against it")


def _backup(policy: GatePolicy, ask: Ask) -> GateFinding:
    if ask.backup_reachable_level < policy.backup_level:
        reason = f"the policy asks for a backup of L{policy.backup_level}; this configuration reaches L{ask.backup_reachable_level}"
        return _found(Gate.BACKUP, GateState.REFUSED, reason)
    return _found(
        Gate.BACKUP,
        GateState.OPENS,
        f"a backup is taken and proved to L{policy.backup_level} before anything changes",
    )


def _data_loss(policy: GatePolicy, ask: Ask) -> GateFinding:
    if not ask.loses_data:
        return _found(
            Gate.DATA_LOSS, GateState.MET, "the downgrade destroys no rows or values that are known of"
        )
    lost = ", ".join(ask.loses_data)
    if policy.data_loss is DataLossPolicy.REFUSE:
        return _found(Gate.DATA_LOSS, GateState.REFUSED, f"{lost}; and the policy refuses any loss")
    if not ask.loss_is_archived:
        reason = (
            f"{lost}; and not all of it is known well enough to be archived: that needs a rehearsal that passes,"
            " with rows where the downgrade works on rows"
        )
        return _found(Gate.DATA_LOSS, GateState.NEEDS_PERSON, reason)
    if policy.data_loss is DataLossPolicy.ASK:
        return _found(
            Gate.DATA_LOSS,
            GateState.NEEDS_PERSON,
            f"{lost}; archived first, and the policy asks a person",
        )
    return _found(Gate.DATA_LOSS, GateState.OPENS, f"{lost}; archived first, in the same transaction")


def _rehearsal(ask: Ask) -> GateFinding:
    if not ask.rehearsed:
        reason = f"the way back isn't rehearsed ({ask.not_rehearsed_because}): a person must answer for it"
        return _found(Gate.REHEARSAL, GateState.NEEDS_PERSON, reason)
    return _found(Gate.REHEARSAL, GateState.MET, f"rehearsed on scratch, {ask.rehearsed}: it passed")


def _lock(policy: GatePolicy, ask: Ask) -> GateFinding:
    if ask.lock_s < 0:
        reason = "nobody knows how long it keeps others out of its tables"
        return _found(Gate.LOCK, GateState.MET if ask.stops_writes else GateState.NEEDS_PERSON, reason)
    about = f"about {ask.lock_s:.1f} s of lock; the policy's budget is {policy.lock_budget_s:g} s"
    if ask.lock_s > policy.lock_budget_s and not ask.stops_writes:
        return _found(Gate.LOCK, GateState.NEEDS_PERSON, about)
    return _found(
        Gate.LOCK, GateState.MET, f"{about}, and the application is stopped" if ask.stops_writes else about
    )


def _writes(ask: Ask) -> GateFinding:
    if ask.drains:
        reason = "the old release, which works on both schemas, is put back first, and the new one is drained"
        return _found(Gate.WRITES, GateState.OPENS, reason)
    if ask.stops_writes:
        return _found(
            Gate.WRITES, GateState.OPENS, "the declared command stops the application before the downgrade"
        )
    reason = "no command is declared that stops the application: a person must say that nothing writes"
    return _found(Gate.WRITES, GateState.NEEDS_PERSON, reason)


def _incident(policy: GatePolicy, ask: Ask) -> GateFinding:
    if ask.incident:
        return _found(Gate.INCIDENT, GateState.MET, f"incident {ask.incident}")
    if policy.incident_required:
        return _found(Gate.INCIDENT, GateState.OPENS, "no incident was given: rollbackd opens its own record")
    return _found(Gate.INCIDENT, GateState.MET, "this environment needs none")


def _once(ask: Ask) -> GateFinding:
    same = [
        p
        for p in ask.past_runs
        if p.trigger == "automatic" and set(p.rolled_back_from) == set(ask.from_heads)
    ]
    if same and not ask.by_person and ask.downgrades:
        reason = f"{same[-1].run} rolled this revision back already; a second time is for a person to ask"
        return _found(Gate.ONCE, GateState.NEEDS_PERSON, reason)
    return _found(Gate.ONCE, GateState.MET, "the first automatic action on this revision")


def _cool_down(policy: GatePolicy, ask: Ask, now: datetime) -> GateFinding:
    recent = [p for p in ask.past_runs if now - p.created_at < timedelta(seconds=policy.cool_down_s)]
    if recent and not ask.by_person:
        return _found(
            Gate.COOL_DOWN,
            GateState.NEEDS_PERSON,
            f"{recent[-1].run} was less than {policy.cool_down_s:g} s ago",
        )
    return _found(Gate.COOL_DOWN, GateState.MET, "no other run within the cool-down")


def _breaker(policy: GatePolicy, ask: Ask, now: datetime) -> GateFinding:
    today = [p for p in ask.past_runs if now - p.created_at < timedelta(days=1)]
    if len(today) >= policy.max_rollbacks_a_day and not ask.by_person:
        reason = f"{len(today)} runs in 24 hours; the breaker opens at {policy.max_rollbacks_a_day}"
        return _found(Gate.BREAKER, GateState.NEEDS_PERSON, reason)
    return _found(
        Gate.BREAKER, GateState.MET, f"{len(today)} of {policy.max_rollbacks_a_day} runs in 24 hours"
    )


def _approval(policy: GatePolicy, ask: Ask) -> GateFinding:
    if policy.approval_required:
        return _found(
            Gate.APPROVAL,
            GateState.NEEDS_PERSON,
            "the policy asks for the approval of somebody else than who asked",
        )
    if policy.mode is Mode.APPROVAL and not ask.by_person:
        return _found(Gate.APPROVAL, GateState.NEEDS_PERSON, "the target's mode is approval")
    return _found(Gate.APPROVAL, GateState.MET, "the policy asks for none")
