"""The console is tested on the whole server, as the intake is."""

from tests.intake.conftest import house, make_house

__all__ = ["house", "make_house"]
