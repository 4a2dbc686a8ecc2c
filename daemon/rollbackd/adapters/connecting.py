"""Why an HTTP server can't be reached, in the words of the system instead of those of the client's library."""

import os

import aiohttp


def why_unreachable(error: Exception) -> str:
    """One line: `connection refused`, where the system gave a number for it; otherwise what the error says."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
        # Of a name that isn't resolved the number is one of getaddrinfo's, and so is negative.
        number = error.os_error.errno
        return os.strerror(number).lower() if number > 0 else str(error.os_error.strerror)
    return " ".join(str(error).split()) or type(error).__name__
