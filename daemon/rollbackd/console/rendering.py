"""Templates to HTML: everything is escaped unless a template of ours made it."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rollbackd.core.assess import heads_text
from rollbackd.core.wording import ago, moment, size, took

# What a state is to somebody who looks at it: its colour, and the mark that says the same without one.
TONES = {
    "succeeded": ("good", "✓"), "done": ("good", "✓"), "passed": ("good", "✓"), "met": ("good", "✓"), "kept": ("good", "✓"),
    "healthy": ("good", "✓"), "reversible": ("good", "✓"), "opens": ("good", "…"),
    "running": ("", "▶"), "under way": ("", "▶"), "watching": ("", "▶"), "planned": ("", "·"), "not begun": ("", "·"),
    "awaiting_approval": ("wait", "◆"), "held": ("wait", "◆"), "needs_person": ("wait", "◆"),
    "failed": ("bad", "✗"), "failing": ("bad", "✗"), "refused": ("bad", "✗"), "will_fail": ("bad", "✗"),
    "irreversible": ("bad", "✗"), "rollback_failed": ("bad", "✗"), "firing": ("bad", "✗"),
    "warned": ("warn", "!"), "unknown": ("warn", "?"), "undone": ("warn", "!"), "reversible_with_loss": ("warn", "!"),
    "abandoned": ("warn", "!"), "denied": ("warn", "!"), "expired": ("warn", "!"), "no data": ("warn", "?"),
    "rolled_back": ("warn", "↩"), "normal": ("good", "✓"), "degraded": ("warn", "!"), "critical": ("bad", "✗"),
}  # fmt: skip


if TYPE_CHECKING:
    import jinja2


def render(template: str, **shown: Any) -> str:
    """A page."""
    return _environment().get_template(template).render(**shown)


@cache
def static_file(name: str) -> str:
    """A file that the pages need."""
    return files("rollbackd.console").joinpath("static", name).read_text(encoding="utf-8")


@cache
def _environment() -> "jinja2.Environment":
    import jinja2  # noqa: PLC0415 - an idle daemon shows no page

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("rollbackd.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        ago=ago, moment=moment, size=size, took=took, heads=_heads, words=_words, state=_state, number=_number
    )
    made.globals.update(tone=tone, style=lambda: Markup(static_file("console.css")))  # noqa: S704 - our own file
    return made


def tone(state: str) -> str:
    """The style of a state."""
    return TONES.get(state, ("", ""))[0]


def _state(state: str) -> Markup:
    style, mark = TONES.get(state, ("", ""))
    return Markup('<span class="state {}"><span aria-hidden="true">{}</span> {}</span>').format(
        style, mark, _words(state)
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _heads(heads: tuple[str, ...] | None) -> str:
    return "unknown" if heads is None else heads_text(heads)


def _number(value: float | None, otherwise: str = "unknown") -> str:
    return otherwise if value is None or value < 0 else f"{value:,.0f}"
