"""Linux namespaces, limits and a filter of system calls around a process of ``isolated_tests``, by the C library alone.

Each function raises ``OSError``, with the name of the call, where the machine does not allow it.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import struct
import sys
from typing import Any

NEW_MOUNT, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
NO_SUID, NO_DEVICES, NO_EXEC, BIND, RECURSIVE, PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
SYS_MOUNT_SETATTR, HERE, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
DIE_WITH_PARENT, DUMPABLE, SECCOMP, NO_NEW_PRIVILEGES = 1, 4, 22, 38
NOBODY = 65534
OPEN_FILES = 64
SCRATCH = "/sandbox"
READABLE = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/null"]

# The machine's number for seccomp, and those of socket, shmget, add_key, request_key, keyctl and io_uring_setup.
FORBIDDEN = {
    "x86_64": (0xC000003E, [41, 29, 248, 249, 250, 425]),
    "aarch64": (0xC00000B7, [198, 194, 217, 218, 219, 425]),
}


def enter_namespaces() -> None:
    """Leave the host's files, network and shared memory; root does so as root, others in a user namespace."""
    kinds = NEW_MOUNT | NEW_IPC | NEW_PID | NEW_NET
    try:
        _system("unshare", kinds)
    except PermissionError:
        _leave_root()
        # Or the files of /proc/self stay root's.
        _system("prctl", DUMPABLE, 1, 0, 0, 0)
        user, group = os.geteuid(), os.getegid()
        _system("unshare", NEW_USER | kinds)
        for name, line in ("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1"):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)


def split_off_processes() -> None:
    """Give the next child, and those below it, a process namespace: they see only each other, and end with it."""
    _system("unshare", NEW_PID)


def build_jail(root: str, file_bytes: int) -> None:
    """Fill ``root`` with what is to be seen: the interpreter's libraries, read-only, and a small folder to write to."""
    _system("mount", None, "/", None, RECURSIVE | PRIVATE, None)
    _system("mount", "tmpfs", root, "tmpfs", NO_SUID, "mode=755")
    where_there = filter(os.path.exists, [*READABLE, f"{sys.base_exec_prefix}/{sys.platlibdir}"])
    for path in sorted({*where_there, os.path.dirname(os.__file__)}):
        inside = root + path
        if os.path.exists(inside):
            continue
        os.makedirs(inside if os.path.isdir(path) else os.path.dirname(inside), exist_ok=True)
        if not os.path.isdir(path):
            open(inside, "x").close()
        _system("mount", path, inside, None, BIND | RECURSIVE, None)
    os.mkdir(root + SCRATCH)
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY | NO_SUID)
    # Has no function of its own in older C libraries.
    _system("syscall", SYS_MOUNT_SETATTR, HERE, root, AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    small = f"mode=1777,size={file_bytes},nr_inodes=1000"
    _system("mount", "tmpfs", root + SCRATCH, "tmpfs", NO_SUID | NO_DEVICES | NO_EXEC, small)
    os.chdir(root)


def confine(limits: dict[str, Any], isolated: bool) -> None:
    """Give up all that this process is not to have; if not ``isolated``, set the limits and no more."""
    if isolated:
        _leave_root()
        # The kernel counts processes by user namespace: others of the same user do not use up the limit.
        _system("unshare", NEW_USER)
        # It also makes no further user namespace from a changed root, so that nobody regains what is given up here.
        os.chroot(".")
        os.chdir(SCRATCH)
        _system("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
        _system("capset", version_3, (ctypes.c_uint32 * 6)())
        _forbid_calls()
    die_with_parent()
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        most = resource.getrlimit(kind)[1]
        least = value if most == resource.RLIM_INFINITY else min(value, most)
        # macOS has no limit on memory.
        with contextlib.nullcontext() if isolated else contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (least, least))


def _forbid_calls() -> None:
    """Calls that get past namespaces and limits: VSOCK to a hypervisor, the user's keys, memory that nobody maps."""
    if os.uname().machine not in FORBIDDEN:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), f"seccomp on {os.uname().machine}")
    machine, numbers = FORBIDDEN[os.uname().machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    refuse, allow = (give, 0, 0, 0x50000 | errno.EPERM), (give, 0, 0, 0x7FFF0000)
    # A jump has how many instructions to skip where it holds, and where not. Above 2³⁰ are the same calls again.
    program = [(load, 0, 0, 4), (equal, 1, 0, machine), refuse, (load, 0, 0, 0), (at_least, 0, 1, 2**30), refuse]
    for number in numbers:
        program += [(equal, 0, 1, number), refuse]
    program += [allow]
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    _system("prctl", SECCOMP, 2, struct.pack("HP", len(program), ctypes.addressof(instructions)), 0, 0)


def _leave_root() -> None:
    if os.geteuid() == 0:
        _system("setgroups", 0, None)
        _system("setresgid", NOBODY, NOBODY, NOBODY)
        _system("setresuid", NOBODY, NOBODY, NOBODY)


def die_with_parent() -> None:
    """Once more after each change of user, which resets it."""
    if sys.platform == "linux":
        _system("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def _system(name: str, *arguments: object) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*(_native(argument) for argument in arguments)) == -1:
        number = ctypes.get_errno()
        call = " ".join([name, *(argument for argument in arguments if isinstance(argument, str))])
        raise OSError(number, os.strerror(number), call)


def _native(argument: object) -> object:
    if isinstance(argument, str):
        return argument.encode()
    return ctypes.c_long(argument) if isinstance(argument, int) else argument
