"""The steps that a plan is made of, as data, and each of them in a line."""

import msgspec

from rollbackd.core.archives import ArchiveItem
from rollbackd.core.assess import heads_text


class StepBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What every step declares.

    `timeout_s` bounds one attempt, `attempts` counts the first one too; a step that is `past_return` changes the
    database, so that failing there is for a person to settle.
    """

    timeout_s: float
    attempts: int = 1
    past_return: bool = False

    @property
    def kind(self) -> str:
        """The kind, as the journal, metrics and pages name it."""
        return str(self.__struct_config__.tag)


class ValidateBefore(StepBase, frozen=True, tag="validate_before"):
    """Look again, right before anything is done, that the database is where the plan thinks it is."""

    from_heads: tuple[str, ...]


class BackUp(StepBase, frozen=True, tag="back_up"):
    """Take a backup of the whole database, or take over a proved one that is younger than `reuse_within_s`."""

    reuse_within_s: float


class ProveBackup(StepBase, frozen=True, tag="prove_backup"):
    """Prove the backup to the level that the policy asks for; with `rehearses` take the plan's revisions off on the
    restored copy as well: proof and last rehearsal in one act, on the rows of this very minute.
    """

    level: int
    rehearses: bool = False


class StopApplication(StepBase, frozen=True, tag="stop_application"):
    """Stop whatever writes; undone by starting `version` again if nothing was changed afterwards."""

    version: str


class CopyAhead(StepBase, frozen=True, tag="copy_ahead"):
    """Copy what takes longer than a lock may last into the archive now, and log what changes from here on."""

    items: tuple[ArchiveItem, ...]


class Drain(StepBase, frozen=True, tag="drain"):
    """Wait until the sessions of the release that was replaced are gone; `application` narrows whose they are."""

    application: str


class Downgrade(StepBase, frozen=True, tag="downgrade"):
    """Archive and take off one group of revisions in one transaction (or one that can't be in any)."""

    revisions: tuple[str, ...]
    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]
    changes_schema: bool
    changes_data: bool = False
    alone_because: str = ""


class ValidateDatabase(StepBase, frozen=True, tag="validate_database"):
    """Check revision, schema and data afterwards."""

    to_heads: tuple[str, ...]


class RecoverLost(StepBase, frozen=True, tag="recover_lost"):
    """Run the migration again on the backup from before it, and take what it takes away into the target's archive."""

    backup: str
    revisions: tuple[str, ...]
    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]


class BringBack(StepBase, frozen=True, tag="bring_back"):
    """Bring what was recovered back into its tables, and overwrite nothing newer."""


class StartApplication(StepBase, frozen=True, tag="start_application"):
    """Put the old release back."""

    version: str


class ValidateApplication(StepBase, frozen=True, tag="validate_application"):
    """Wait until every probe is healthy."""


class Confirm(StepBase, frozen=True, tag="confirm"):
    """Watch the version table for a while: nothing may upgrade again behind us."""

    heads: tuple[str, ...]
    for_s: float


class AwaitPerson(StepBase, frozen=True, tag="await_person"):
    """Stop at once and say where the database stands; done when it is at `from_heads` or `to_heads` whole."""

    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]
    statement: str


Step = (
    ValidateBefore
    | BackUp
    | ProveBackup
    | RecoverLost
    | CopyAhead
    | StopApplication
    | Drain
    | Downgrade
    | ValidateDatabase
    | BringBack
    | StartApplication
    | ValidateApplication
    | Confirm
    | AwaitPerson
)
STEP_KINDS = (
    "validate_before",
    "back_up",
    "prove_backup",
    "recover_lost",
    "copy_ahead",
    "stop_application",
    "drain",
    "downgrade",
    "validate_database",
    "bring_back",
    "start_application",
    "validate_application",
    "confirm",
    "await_person",
)


def step_text(step: Step) -> str:
    """One step in one line, for plans, trees and reports."""
    match step:
        case ValidateBefore():
            return f"check that the database is at {heads_text(step.from_heads)} and that everything needed is there"
        case BackUp():
            return "back up the whole database"
        case ProveBackup():
            also = ", and rehearse the downgrade on the restored copy" if step.rehearses else ""
            return f"prove the backup to L{step.level}{also}"
        case StopApplication():
            return f"stop {step.version or 'the application'}"
        case RecoverLost():
            return f"recover what the migration took away, from {step.backup}"
        case BringBack():
            return "bring back what the migration took away"
        case CopyAhead():
            tables = ", ".join(sorted({item.table.text() for item in step.items}))
            return f"copy {tables} into the archive ahead of the lock"
        case Drain():
            return "wait until the sessions of the replaced release are gone"
        case Downgrade():
            alone = f" by itself ({step.alone_because})" if step.alone_because else ""
            return (
                f"archive, and downgrade {', '.join(step.revisions)}{alone}, to {heads_text(step.to_heads)}"
            )
        case ValidateDatabase():
            return "check revision, schema and data"
        case StartApplication():
            return f"start {step.version or 'the old release'}"
        case ValidateApplication():
            return "wait until every probe is healthy"
        case Confirm():
            return f"watch the version table for {step.for_s:g} s"
        case AwaitPerson():
            return "wait for a person"
