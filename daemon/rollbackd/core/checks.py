"""Named checks and what they found. Worst wins; a check that could not be made has not passed."""

from enum import StrEnum

import msgspec


class Outcome(StrEnum):
    """How a check came out, best first."""

    PASSED = "passed"
    WARNED = "warned"
    UNKNOWN = "unknown"
    FAILED = "failed"


_RANK = {Outcome.PASSED: 0, Outcome.WARNED: 1, Outcome.UNKNOWN: 2, Outcome.FAILED: 3}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one named check found, in a sentence, with the details that prove it."""

    check: str
    outcome: Outcome
    text: str
    details: tuple[str, ...] = ()


def worst(findings: tuple[Finding, ...]) -> Outcome:
    """The worst outcome; nothing checked is unknown."""
    return max((finding.outcome for finding in findings), key=_RANK.__getitem__, default=Outcome.UNKNOWN)
