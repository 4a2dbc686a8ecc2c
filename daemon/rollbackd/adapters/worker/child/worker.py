"""The worker's main loop: a request a line, an answer a line."""

from __future__ import annotations

import builtins
import io
import json
import os
import sys
from typing import BinaryIO

from .channel import Channel, Words
from .faults import AsksQuestion, describe_error, redact
from .running import Worker


def main(requests: BinaryIO) -> None:
    protocol_out = os.dup(1)
    channel = Channel(protocol_out)
    # User code gets an empty stdin, and what it prints goes to stderr: neither can touch the protocol.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the process's own, to its end
    sys.stdout = sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(Words()), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )

    def asked(prompt: object = "") -> str:
        raise AsksQuestion(str(prompt))

    builtins.input = asked
    worker = Worker(channel)
    for line in requests:
        request = json.loads(line)
        number, name = request.pop("id"), request.pop("do")
        try:
            answer = getattr(worker, name)(**request)
        except BaseException as error:  # user code may raise anything, SystemExit included
            if isinstance(error, KeyboardInterrupt):
                raise
            kind, message = describe_error(error)
            channel.send(type="error", id=number, kind=kind, message=redact(message))
        else:
            channel.send(type="result", id=number, answer=answer)
