"""What the shell completes for each argument. A shell asks at every keystroke: a fault gives no completions and no words."""

from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from rollbackd.app import names

Named = list[tuple[str, str]]
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completing(found: Callable[[Path, str], Named]) -> Complete:
    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            config: Path = ctx.find_root().params["config"]
            known = found(config.expanduser(), incomplete)
            return [CompletionItem(name, help=what or None) for name, what in known]
        except Exception:  # noqa: BLE001 - whatever is wrong, a command that is run says it; a keystroke must not
            return []

    return complete


targets = _completing(names.target_names)
runs = _completing(names.run_names)
runs_to_approve = _completing(lambda c, prefix: names.run_names(c, prefix, ("awaiting_approval",)))
held_runs = _completing(lambda c, prefix: names.run_names(c, prefix, ("held",)))
finished_runs = _completing(
    lambda c, prefix: names.run_names(c, prefix, ("succeeded", "failed", "abandoned"))
)
runs_and_decisions = _completing(names.run_and_decision_names)
backups = _completing(names.backup_names)
tokens = _completing(names.token_names)
