"""Talking to the service manager: one datagram per fact (sd_notify(3)). Silent when there is none."""

import os
import socket


def notify(**facts: str | int) -> None:
    """Send facts such as READY=1, STATUS=..., WATCHDOG=1, STOPPING=1."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):                # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.sendall("\n".join(f"{name}={value}" for name, value in facts.items()).encode())
        except OSError:                        # a manager that is gone must not end the daemon
            return


def watchdog_s() -> float | None:
    """How often the manager wants a sign of life, or None."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    if not usec.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 1e6


def credential(name: str) -> str | None:
    """Path of a credential that the manager handed over, or None."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = os.path.join(directory, name) if directory else None
    return path if path and os.path.exists(path) else None
