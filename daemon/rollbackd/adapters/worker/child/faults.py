"""What can go wrong in the worker, and how it is said: no password leaves it, and each error has its kind."""

from __future__ import annotations

import os
import re
import sys
import traceback

TRANSIENT_STATES = ("55P03", "40P01", "40001", "53300", "57P01", "57P02", "57P03")


class Refused(Exception):
    """Something that the user must mend first; nothing was changed."""


class Transient(Exception):
    """Something that may pass by itself."""


class AsksQuestion(BaseException):
    """User code called input(). A BaseException, so that a bare `except Exception` in user code can't swallow it."""


class TouchesTheWorld(BaseException):
    """User code tried to reach something while it was only being read. A BaseException, for the same reason."""


# -- errors -------------------------------------------------------------------------------------------------------------


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return redact(text.splitlines()[0])


def redact(text: str) -> str:
    """No password of any URL leaves the worker."""
    return re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)


def where_in_user_code(error: BaseException) -> str:
    """The last frame that lies in the user's own files, as `file:line`."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if os.path.isabs(f.filename)]
    own = [
        f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(sys.base_prefix)
    ]
    return f"{os.path.basename(own[-1].filename)}:{own[-1].lineno}" if own else ""


def missing_variable(error: BaseException) -> str:
    """The variable that was looked up in os.environ and isn't there; empty where the error is another one."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if isinstance(error, KeyError) and last is not None and last.tb_frame.f_globals is vars(os):
        return str(error.args[0])
    return ""


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE that the server gave, wherever in the chain of causes it is; empty where it gave none."""
    origin: BaseException | None = error
    while origin is not None:
        driver_error = getattr(origin, "orig", None) or origin
        state = getattr(driver_error, "sqlstate", None) or getattr(driver_error, "pgcode", None) or ""
        if state:
            return str(state)
        origin = origin.__cause__ or origin.__context__
    return ""


def describe_error(error: BaseException) -> tuple[str, str]:
    """The kind and the sentence for what went wrong."""
    if isinstance(error, Refused):
        return "refused", str(error)
    if isinstance(error, Transient):
        return "transient", str(error)
    if isinstance(error, (AsksQuestion, EOFError)):
        place = where_in_user_code(error)
        return "refused", f"the migration asks a question (input() at {place}), so it can't run unattended"
    if isinstance(error, TouchesTheWorld):
        place = where_in_user_code(error)
        return "refused", f"{error} (at {place})" if place else str(error)
    if isinstance(error, SystemExit):
        return "refused", f"env.py or a migration called sys.exit() at {where_in_user_code(error)}"
    state = sqlstate(error)
    place = where_in_user_code(error)
    sentence = f"{type(error).__name__}: {first_line(error)}" + (f" (at {place})" if place else "")
    variable = missing_variable(error)
    if variable:
        sentence += (
            f": the worker's environment is the configuration's alone; if it is the database's URL, set 'migrations.url' (or"
            f" --url) to \"environment:{variable}\", else name it in 'migrations.environment'"
        )
    if state in TRANSIENT_STATES or state.startswith("08"):
        return "transient", sentence
    if state:
        return "permanent", f"{sentence} [SQLSTATE {state}]"
    if type(error).__name__ == "OperationalError":
        return "transient", sentence
    return "refused" if place.startswith("env.py") else "permanent", sentence
