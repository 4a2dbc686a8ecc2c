"""Why an HTTP server can't be reached, in the words of the system instead of those of the client's library."""

import os


def why_unreachable(error: Exception) -> str:
    """One line: `connection refused`, where the system gave a number for it; otherwise what the error says."""
    # As an attribute, because completing commands must not load aiohttp.
    cause = getattr(error, "os_error", None)
    if isinstance(cause, OSError) and cause.errno:
        # Of a name that isn't resolved the number is one of getaddrinfo's, and so is negative.
        return os.strerror(cause.errno).lower() if cause.errno > 0 else str(cause.strerror)
    return " ".join(str(error).split()) or type(error).__name__
