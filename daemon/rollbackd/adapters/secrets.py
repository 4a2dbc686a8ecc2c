"""Resolving secret references. A secret is read when it is needed and held no longer than that."""

import os
import stat
from pathlib import Path

from rollbackd.errors import ConfigurationError
from rollbackd.settings import SecretReference


def read_secret(reference: SecretReference) -> str:
    """The secret behind a reference, without its trailing newline.

    `file:NAME` without a slash is a systemd credential ($CREDENTIALS_DIRECTORY).

    Raises:
        ConfigurationError: when it isn't there, is empty, or is a file that everybody may read.
    """
    scheme, _, name = reference.partition(":")
    if scheme == "env":
        value = os.environ.get(name, "")
        if not value:
            raise ConfigurationError(
                [f"the environment variable {name} is not set, and a secret is expected in it"]
            )
        return value
    path = Path(name) if "/" in name else Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / name
    try:
        mode = path.stat().st_mode
        value = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            [f"the secret file {path} can't be read: {getattr(error, 'strerror', error)}"]
        ) from None
    if mode & stat.S_IROTH:
        raise ConfigurationError([f"the secret file {path} may be read by everybody: chmod o-r {path}"])
    if not value:
        raise ConfigurationError([f"the secret file {path} is empty"])
    return value
