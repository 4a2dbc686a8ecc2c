"""Resolving secret references. A secret is read when it is needed.

What was read is remembered for one purpose: to blank it out of every text that comes from outside (a driver's error, a child's
last words, a log line). Nothing else can know what a secret looks like.
"""

import os
import re
import stat
from pathlib import Path
from urllib.parse import quote, quote_plus

from rollbackd.errors import ConfigurationError
from rollbackd.settings import SecretReference

# Up to the last @ of the word: a password may hold one itself.
_PASSWORD_IN_URL = re.compile(r"(://[^:/@\s]*):\S*@")
# A shorter one isn't looked for: it would blank out half of what is said, and hide nothing.
_SHORTEST = 4
# One as long as this is blanked out wherever it stands; a shorter one may also be a part of a longer word.
_UNMISTAKABLE = 12
_known: set[str] = set()


def without_secrets(text: str) -> str:
    """The text with every password in a URL and every secret that was read blanked out, as it is or encoded for a URL."""
    if "://" in text:
        text = _PASSWORD_IN_URL.sub(r"\1:***@", text)
    for secret in sorted((s for s in _known if s in text), key=len, reverse=True):
        escaped = re.escape(secret)
        whole = escaped if len(secret) >= _UNMISTAKABLE else rf"(?<![^\W_]){escaped}(?![^\W_])"
        text = re.sub(whole, "***", text)
    return text


def _remember(secret: str) -> None:
    for line in (secret, *secret.splitlines()):
        bare = line.removeprefix("whsec_")
        for form in (line, bare, quote(line, safe=""), quote_plus(line), repr(line)[1:-1]):
            if len(form) >= _SHORTEST:
                _known.add(form)


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
        _remember(value)
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
    _remember(value)
    return value
