"""What a unit file forbids, put upon one process without systemd, as far as a kernel and root can.

    python sandbox.py UNIT STATE_DIRECTORY [PATH...] -- COMMAND...

becomes COMMAND, under an unprivileged user, with STATE_DIRECTORY as the only place that can be written; each PATH
stays visible even where the unit hides its folder. A directive that is neither applied here nor in `NOT_APPLIED` is an
error: whoever adds one to a unit decides which of the two it is.
"""

import ctypes
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

USER = 61234                # as DynamicUser= would take one
NOT_APPLIED = {
    "IPAddressDeny", "IPAddressAllow", "MemoryMax", "DeviceAllow", "DevicePolicy",      # need a control group
    "KeyringMode", "RemoveIPC",                                 # nothing here makes keys or System V objects
    "ProtectClock", "ProtectKernelModules", "ProtectKernelLogs", "ProtectHostname",     # go with the capabilities
    "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "SystemCallArchitectures",      # arguments of calls
}
LIFE = {"Type", "ExecStart", "ExecReload", "Restart", "RestartSec", "RestartPreventExitStatus", "WatchdogSec",
        "TimeoutStopSec", "KillMode", "OOMPolicy", "StateDirectory", "StateDirectoryMode", "RuntimeDirectory",
        "ConfigurationDirectory", "LoadCredential", "Environment", "EnvironmentFile", "WorkingDirectory", "DynamicUser",
        "PrivateMounts", "AmbientCapabilities", "SystemCallErrorNumber", "PrivateDevices", "ProtectControlGroups",
        "ProtectKernelTunables", "ProtectProc", "ProcSubset"}
"""Facts that whoever starts the process looks after, or that go with those below."""

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x10000000, 0x4000000, 0x8000000
NAMESPACES = 0x7E020080     # all that clone(2) and unshare(2) know
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
MOUNT_SETATTR, AT_RECURSIVE, AT_FDCWD, ATTR_RDONLY = 442, 0x8000, -100, 1
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 4, 24, 38, 65
ALLOW, ERRNO, EQ, MASKED = 0x7FFF0000, 0x00050000, 4, 7
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
FAMILY_MAX = 46

libc = ctypes.CDLL(None, use_errno=True)


class Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`"""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Attributes(ctypes.Structure):
    """`struct mount_attr`"""

    _fields_ = (("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64),
                ("userns", ctypes.c_uint64))


def must(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno() or -result
        raise OSError(code, f"{what}: {os.strerror(code)}")


def settings(unit: Path) -> dict[str, list[str]]:
    """The [Service] section."""
    out: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            out.setdefault(key, []).append(value)
    return out


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    must(libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()), f"mount {target}")


def set_read_only(path: str, on: bool) -> None:
    said = Attributes(ATTR_RDONLY if on else 0, 0 if on else ATTR_RDONLY, 0, 0)
    must(libc.syscall(MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, ctypes.byref(said), ctypes.sizeof(said)),
         f"mount_setattr {path}")


def hide_files(unit: dict[str, list[str]], state: Path, visible: Iterable[Path]) -> None:
    """PrivateMounts, ProtectSystem=strict, ProtectHome, PrivateTmp, ProtectProc, ProcSubset, ProtectControlGroups."""
    must(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC), "unshare")
    mount("none", "/", "none", MS_REC | MS_PRIVATE)
    keep = [*visible, state]
    hidden = [*(["/tmp", "/var/tmp"] if unit["PrivateTmp"] == ["yes"] else []),
              *(["/home", "/root", "/run/user"] if unit["ProtectHome"] == ["yes"] else [])]
    # Descriptors, since the names are about to be hidden.
    held = [(path, os.open(path, os.O_PATH)) for path in keep]
    for folder in filter(os.path.isdir, hidden):
        mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777" if "tmp" in folder else "mode=0755")
    for path, descriptor in held:
        path.mkdir(parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{descriptor}", str(path), "none", MS_BIND | MS_REC)
        os.close(descriptor)
    options = [f"hidepid={unit['ProtectProc'][0]}"] if "ProtectProc" in unit else []
    options += ["subset=pid"] if unit.get("ProcSubset") == ["pid"] else []
    assert unit["ProtectSystem"] == ["strict"]
    set_read_only("/", True)
    for folder in (str(state), *(["/tmp", "/var/tmp"] if unit["PrivateTmp"] == ["yes"] else [])):
        set_read_only(folder, False)
    for path in visible:
        set_read_only(str(path), True)
    mount("proc", "/proc", "proc", 0, ",".join(options))


def limit(unit: dict[str, list[str]]) -> None:
    for key, number in (("LimitNOFILE", resource.RLIMIT_NOFILE), ("LimitCORE", resource.RLIMIT_CORE),
                        ("TasksMax", resource.RLIMIT_NPROC)):
        most = resource.getrlimit(number)[1]         # root in a container may not raise it
        value = int(unit[key][0]) if most == resource.RLIM_INFINITY else min(int(unit[key][0]), most)
        resource.setrlimit(number, (value, value))
    os.umask(int(unit["UMask"][0], 8))


def drop_capabilities() -> None:
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            return                  # the kernel has no more of them


def drop_rights(unit: dict[str, list[str]]) -> None:
    """DynamicUser, CapabilityBoundingSet=, NoNewPrivileges, PrivateUsers."""
    assert unit["CapabilityBoundingSet"] == [""]
    drop_capabilities()
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    if unit["PrivateUsers"] == ["yes"]:
        # A change of user made this process not dumpable, and its own /proc files root's.
        must(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "PR_SET_DUMPABLE")
        must(libc.unshare(CLONE_NEWUSER), "unshare user")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{USER} {USER} 1")
        Path("/proc/self/gid_map").write_text(f"{USER} {USER} 1")
        drop_capabilities()         # the new namespace gave it every capability over itself
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        must(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    assert unit["NoNewPrivileges"] == ["yes"]
    must(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "NoNewPrivileges")
    if unit["MemoryDenyWriteExecute"] == ["yes"]:
        must(libc.prctl(PR_SET_MDWE, 1, 0, 0, 0), "MemoryDenyWriteExecute")


def calls_of(name: str) -> set[str]:
    """A set of system calls, as the systemd of this machine has it."""
    if not name.startswith("@"):
        return {name}
    said = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    out: set[str] = set()
    for line in said.stdout.splitlines()[1:]:
        word = line.strip()
        if word and not word.startswith("#"):
            out |= calls_of(word)
    return out


def allowed_calls(unit: dict[str, list[str]]) -> set[str]:
    allowed: set[str] = set()
    for line in unit["SystemCallFilter"]:
        for name in line.removeprefix("~").split():
            allowed = allowed - calls_of(name) if line.startswith("~") else allowed | calls_of(name)
    return allowed


def filter_calls(unit: dict[str, list[str]], allowed: set[str]) -> None:
    """RestrictAddressFamilies, RestrictNamespaces, SystemCallFilter, in this order: each may forbid to add another."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    number = seccomp.seccomp_syscall_resolve_name

    def rule(context: int, action: int, name: str, *comparisons: Comparison) -> None:
        given = (Comparison * max(1, len(comparisons)))(*comparisons)
        must(seccomp.seccomp_rule_add_array(ctypes.c_void_p(context), ctypes.c_uint32(action), number(name.encode()),
                                            len(comparisons), given), name)

    arguments = seccomp.seccomp_init(ctypes.c_uint32(ALLOW))
    families = {FAMILIES[name] for name in unit["RestrictAddressFamilies"][0].split()}
    for family in set(range(FAMILY_MAX)) - families:
        rule(arguments, ERRNO | errno.EAFNOSUPPORT, "socket", Comparison(0, EQ, family, 0))
    if unit["RestrictNamespaces"] == ["yes"]:
        for bit in (1 << n for n in range(32) if NAMESPACES & 1 << n):
            rule(arguments, ERRNO | errno.EPERM, "unshare", Comparison(0, MASKED, bit, bit))
            rule(arguments, ERRNO | errno.EPERM, "clone", Comparison(0, MASKED, bit, bit))
        rule(arguments, ERRNO | errno.EPERM, "setns")
    must(seccomp.seccomp_load(ctypes.c_void_p(arguments)), "seccomp_load")
    assert unit["SystemCallErrorNumber"] == ["EPERM"]
    calls = seccomp.seccomp_init(ctypes.c_uint32(ERRNO | errno.EPERM))
    for name in sorted(allowed):
        if number(name.encode()) >= 0:          # names of other machines
            rule(calls, ALLOW, name)
    must(seccomp.seccomp_load(ctypes.c_void_p(calls)), "seccomp_load")


def enter(unit: dict[str, list[str]], state: Path, visible: Iterable[Path]) -> None:
    applied = {"PrivateTmp", "ProtectHome", "ProtectSystem", "LimitNOFILE", "LimitCORE", "TasksMax", "UMask",
               "CapabilityBoundingSet", "PrivateUsers", "NoNewPrivileges", "MemoryDenyWriteExecute", "SystemCallFilter",
               "RestrictAddressFamilies", "RestrictNamespaces"}
    unknown = unit.keys() - applied - NOT_APPLIED - LIFE
    assert not unknown, f"apply these, or say in NOT_APPLIED that they are not: {unknown}"
    allowed = allowed_calls(unit)
    hide_files(unit, state, list(visible))
    limit(unit)
    drop_rights(unit)
    filter_calls(unit, allowed)


if __name__ == "__main__":
    given, command = sys.argv[1:sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1:]
    enter(settings(Path(given[0])), Path(given[1]), [Path(each) for each in given[2:]])
    os.execv(command[0], command)
