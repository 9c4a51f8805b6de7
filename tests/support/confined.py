"""Run a program with the system calls that a systemd unit leaves it: confined.py UNIT PROGRAM [ARGUMENT...]"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS = 38
PR_SET_MDWE = 65
REFUSE_EXEC_GAIN = 1
ALLOW = 0x7FFF0000
REFUSE_WITH_EPERM = 0x00050001


def setting(unit: Path, name: str) -> str:
    """Return the value of a setting that stands in the unit once."""
    (line,) = [line for line in unit.read_text().splitlines() if line.startswith(f"{name}=")]
    return line.partition("=")[2]


def system_calls(group: str) -> set[str]:
    """Return the names in a group, and in the groups within it, as this systemd knows them."""
    shown = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    names: set[str] = set()
    for word in (line.strip() for line in shown.stdout.splitlines()[1:]):
        if word.startswith("@"):
            names |= system_calls(word)
        elif word and not word.startswith("#"):
            names.add(word)
    return names


def confine(unit: Path) -> None:
    """Give up what the unit takes away, for this process and all that come of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert setting(unit, "NoNewPrivileges") == setting(unit, "MemoryDenyWriteExecute") == "true"
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    libc.prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0)  # from Linux 6.3 on
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp.seccomp_init(REFUSE_WITH_EPERM))
    for name in system_calls(setting(unit, "SystemCallFilter")):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # others belong to other machines
            assert seccomp.seccomp_rule_add_array(rules, ALLOW, number, 0, None) == 0, name
    assert seccomp.seccomp_load(rules) == 0


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
