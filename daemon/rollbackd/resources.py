"""Where the files that are shipped beside the code are found: hooks, configuration, dashboards, service files."""

from pathlib import Path
from typing import Literal

from rollbackd.errors import PermanentError

Kind = Literal["hooks", "config", "grafana", "systemd"]

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "_resources"
_CHECKOUT = _PACKAGE.parent.parent


class ResourceMissingError(PermanentError):
    """A file that ships with rollbackd is in neither of the places it can be in."""


def resource(kind: Kind, *parts: str) -> Path:
    """Return the path of a shipped file or folder: the wheel's copy, else the checkout's.

    Args:
        kind: the top-level folder.
        parts: what to look for inside it; without any, the folder itself.

    Raises:
        ResourceMissingError: it is in neither place.
    """
    places = [base.joinpath(kind, *parts) for base in (_INSTALLED, _CHECKOUT)]
    for place in places:
        if place.exists():
            return place
    raise ResourceMissingError(
        f"{'/'.join((kind, *parts))} should ship with rollbackd, but is neither at {places[0]} (an installed wheel) "
        f"nor at {places[1]} (a checkout): install rollbackd again, or run it from a complete checkout"
    )
