"""The decision: which row, why, on which facts; and when it is ripe to be acted on."""

import hashlib
from datetime import datetime, timedelta

import msgspec

from rollbackd.core.assess import Assessment
from rollbackd.core.facts import Facts
from rollbackd.core.gates import GateFinding
from rollbackd.core.matrix import Action, Matrix, Row


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one decision; the same inputs give the same record, byte for byte."""

    row: str
    action: Action
    why: str
    facts: Facts
    reasons: dict[str, str]
    set_aside: tuple[str, ...]
    next_steps: tuple[str, ...]
    hold: bool
    matrix_sha256: str
    gates: tuple[GateFinding, ...] = ()

    def canonical(self) -> bytes:
        """The decision as canonical JSON: what is stored and what is compared."""
        return msgspec.json.encode(self, order="deterministic")


def decide(matrix: Matrix, assessment: Assessment) -> tuple[Decision, Row]:
    """Match the facts against the matrix, first row wins. Gates are judged apart."""
    row = matrix.first_match(assessment.facts)
    decision = Decision(
        row=row.name,
        action=row.action,
        why=row.why,
        facts=assessment.facts,
        reasons=assessment.reasons,
        set_aside=assessment.set_aside,
        next_steps=row.next_steps,
        hold=row.hold,
        matrix_sha256=matrix_digest(matrix),
    )
    return decision, row


def is_ripe(row: Row, first_matched_at: datetime, confirm_for_s: float, now: datetime) -> bool:
    """Whether a row has matched without a break for long enough; a row marked at_once needs no wait."""
    return row.at_once or now - first_matched_at >= timedelta(seconds=confirm_for_s)


def matrix_digest(matrix: Matrix) -> str:
    """SHA-256 over the rows, so that a decision names the matrix that made it."""
    return hashlib.sha256(msgspec.json.encode(matrix, order="deterministic")).hexdigest()
