"""The one error tree. What happens next follows the class of an error, never its message.

A message names what was found, what was expected and what to do; it never holds a secret.
"""


class RollbackdError(Exception):
    """Base of every error that rollbackd raises on purpose; `exit_code` is the command line's."""

    exit_code = 1


class RefusedError(RollbackdError):
    """Asked for something that must not be done as things stand; nothing was changed."""


class NotFoundError(RefusedError):
    """Named a target, run, decision or backup that doesn't exist."""


class UsageError(RollbackdError):
    """The request itself is malformed."""

    exit_code = 2


class TransientError(RollbackdError):
    """Failed for a reason that may pass by itself (a lock, a connection); trying again is safe."""


class PermanentError(RollbackdError):
    """Failed, and trying the same again would fail the same way."""


class HeldError(RollbackdError):
    """Where things stand can't be settled without a person; `statement` says what stands where.

    Args:
        statement: one or more sentences for the person who is called.
        evidence: what was read from the database, as plain values.
    """

    exit_code = 3

    def __init__(self, statement: str, evidence: dict[str, object] | None = None) -> None:
        super().__init__(statement)
        self.statement = statement
        self.evidence = evidence or {}


class AwaitingApprovalError(RollbackdError):
    """Waits for a person's word before anything is done."""

    exit_code = 4


class ConfigurationError(RollbackdError):
    """The configuration can't work. `problems` holds every fault as `path: what is wrong, what would be right`."""

    exit_code = 78

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreUnavailableError(RollbackdError):
    """The store can't take a record now (full, locked, too many waiting); the sender should try again."""


class DeliveryRefusedError(RollbackdError):
    """A delivery gets an error answer.

    Args:
        status: HTTP status of the answer.
        reason: the closed word it is counted under.
        message: what was wrong, with the path of the fault.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
