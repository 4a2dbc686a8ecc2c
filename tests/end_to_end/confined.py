"""Runs a program under the system calls that a systemd unit allows: `confined.py UNIT PROGRAM ARGUMENT...`

The sets are systemd's own (`systemd-analyze syscall-filter`), the filter is libseccomp's, as systemd's is, and what isn't allowed
fails with the unit's error. Like systemd, it sets no_new_privs, and children inherit all of it. RestrictAddressFamilies is
applied as well; the other directives of the unit are namespaces and mounts, which take a systemd as PID 1.
"""

import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
PR_SET_NO_NEW_PRIVS = 38
FAMILIES = range(socket.AF_UNSPEC, 46)


class Condition(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("value", ctypes.c_uint64), ("other", ctypes.c_uint64),
    )  # fmt: skip


def directives(unit: Path, name: str) -> list[str]:
    """The values of a directive, in order."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)


def calls_of(name: str) -> set[str]:
    """A system call, or all those of a set."""
    if not name.startswith("@"):
        return {name}
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter", name], capture_output=True, text=True, check=True
    )
    words = [line.strip() for line in done.stdout.splitlines()[1:]]
    found: set[str] = set()
    for word in words:
        if word and not word.startswith("#"):
            found |= calls_of(word)
    return found


def allowed_calls(unit: Path) -> set[str]:
    """What the unit's SystemCallFilter lines come to: the first is a list of what may be, those with ~ take away."""
    allowed: set[str] = set()
    for value in directives(unit, "SystemCallFilter"):
        named = set().union(*(calls_of(word) for word in value.lstrip("~").split()))
        allowed = allowed - named if value.startswith("~") else allowed | named
    # systemd lets these through always, or nothing could be started.
    return allowed | calls_of("@default") | {"execve"}


def confine(unit: Path) -> None:
    """From here on, this process and its children have what the unit allows."""
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    refused = ERRNO | getattr(errno, directives(unit, "SystemCallErrorNumber")[0])
    families = {getattr(socket, name) for name in directives(unit, "RestrictAddressFamilies")[0].split()}
    calls = seccomp.seccomp_init(refused)
    for name in sorted(allowed_calls(unit)):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        # Negative are those of other architectures.
        if number >= 0:
            must(seccomp.seccomp_rule_add_array(ctypes.c_void_p(calls), ALLOW, number, 0, None), name)
    sockets = seccomp.seccomp_init(ALLOW)
    number = seccomp.seccomp_syscall_resolve_name(b"socket")
    for family in set(FAMILIES) - families:
        condition = (Condition * 1)(Condition(0, 4, family, 0))
        action = ERRNO | errno.EAFNOSUPPORT
        must(seccomp.seccomp_rule_add_array(ctypes.c_void_p(sockets), action, number, 1, condition), "socket")
    must(ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    must(seccomp.seccomp_load(ctypes.c_void_p(sockets)), "load")
    must(seccomp.seccomp_load(ctypes.c_void_p(calls)), "load")


def must(code: int, what: str) -> None:
    if code != 0:
        raise OSError(-code, f"{what}: {os.strerror(abs(code))}")


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
