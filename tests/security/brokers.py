"""A real mosquitto that knows who is who, in three ways: passwords, client certificates, the Dynamic Security plugin.

All three enforce `deploy/mosquitto/bayesd.acl`, the file that people install; what a test adds are the identities of
a second worker and a second operator, made from the first ones, and a witness that may read everything. The plugin
has no file of that form: its roles are made from the lines of it.

An `Actor` is one connection under one identity; it keeps what came, and never sleeps.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from tests.edges.mosquitto import Mosquitto, missing
from tests.security.certificates import Authority

ACL = Path(__file__).parents[2] / "deploy" / "mosquitto" / "bayesd.acl"
PROFILES = ("password", "certificate", "dynsec")
PEOPLE = ("bayesd", "w1", "w2", "alice", "bob", "witness")
WAIT_S = 20.0
PLUGINS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/lib64", "/usr/local/lib")

KINDS = {"read": ["publishClientReceive", "subscribePattern"], "write": ["publishClientSend"]}
KINDS["readwrite"] = [*KINDS["read"], *KINDS["write"]]

_WITNESS = "\nuser witness\ntopic read #\ntopic read $SYS/#\ntopic read $CONTROL/#\n"


def access_list(text: str) -> str:
    """The installed list with a second worker, a second operator, and a witness."""
    blocks = re.split(r"\n(?=user )", text)
    known = {block.split()[1]: re.sub(r"(?m)^#.*\n?", "", block) for block in blocks if block.startswith("user ")}
    assert {"w1", "alice", "bayesd"} <= known.keys(), "the access list has other examples than w1, alice and bayesd"
    twins = [known[one].replace(one, other) for one, other in (("w1", "w2"), ("alice", "bob")) if other not in known]
    return text + "\n" + "\n".join(twins) + _WITNESS


def hashed(password: str) -> tuple[bytes, bytes, int]:
    """Hash, salt and rounds of PBKDF2-SHA-512, as mosquitto stores them."""
    salt, rounds = secrets.token_bytes(12), 101
    return hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds), salt, rounds


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


class Guarded:
    """One broker that enforces the list, and who may log in to it."""

    def __init__(self, profile: str, folder: Path, *, acl: str | None = None, people: Iterable[str] = PEOPLE,
                 more: Iterable[str] = ()) -> None:
        self.profile = profile
        self.folder = folder
        self.people = [*people, *more]
        self.passwords = {name: secrets.token_hex(12) for name in self.people}
        self._acl = access_list(ACL.read_text(encoding="utf-8")) if acl is None else acl
        self._authority = Authority(folder) if profile == "certificate" else None
        self._pairs = {name: self._authority.issue(name) for name in self.people} if self._authority else {}
        self.broker = Mosquitto(folder, *self._settings())

    def _settings(self) -> list[str]:
        if self.profile == "dynsec":
            plugin = next((path for each in PLUGINS if (path := Path(each, "mosquitto_dynamic_security.so")).exists()),
                          None)
            if plugin is None:
                missing("mosquitto_dynamic_security.so", "it comes with mosquitto 2")
            roles = self.folder / "dynamic-security.json"
            roles.write_text(json.dumps(self._roles()), encoding="utf-8")
            return ["allow_anonymous false", f"plugin {plugin}", f"plugin_opt_config_file {roles}"]
        acl = self.folder / "bayesd.acl"
        acl.write_text(self._acl, encoding="utf-8")
        if self._authority is not None:
            server = self._authority.issue("broker", server=True)
            return ["allow_anonymous false", f"acl_file {acl}", f"cafile {self._authority.cert}",
                    f"certfile {server.cert}", f"keyfile {server.key}", "require_certificate true",
                    "use_identity_as_username true"]
        known = self.folder / "bayesd.passwd"
        lines = []
        for name, password in self.passwords.items():
            digest, salt, rounds = hashed(password)
            lines.append(f"{name}:$7${rounds}${_text(salt)}${_text(digest)}\n")
        known.write_text("".join(lines), encoding="utf-8")
        known.chmod(0o600)
        return ["allow_anonymous false", f"acl_file {acl}", f"password_file {known}"]

    def _roles(self) -> dict[str, Any]:
        """A role for each identity, with the lines of the list that are about it; everything else is denied."""
        lines = _lines_of(self._acl)
        clients, roles = [], []
        for name in self.people:
            digest, salt, rounds = hashed(self.passwords[name])
            acls: list[dict[str, Any]] = []
            for access, topic in [*lines.get("", []), *lines.get(name, [])]:
                where = topic.replace("%u", name)
                acls += [{"acltype": kind, "topic": where, "priority": 0, "allow": True} for kind in KINDS[access]]
            roles.append({"rolename": name, "acls": acls})
            clients.append({"username": name, "password": _text(digest), "salt": _text(salt), "iterations": rounds,
                            "roles": [{"rolename": name}]})
        return {"defaultACLAccess": {"publishClientSend": False, "publishClientReceive": False, "subscribe": False,
                                     "unsubscribe": True}, "clients": clients, "groups": [], "roles": roles}

    @property
    def url(self) -> str:
        return f"{'mqtts' if self._authority else 'mqtt'}://127.0.0.1:{self.broker.port}"

    def flags(self, name: str) -> list[str]:
        """How `bayesd` logs in as somebody."""
        if self._authority is not None:
            pair = self._pairs[name]
            return ["--ca-file", str(self._authority.cert), "--cert-file", str(pair.cert), "--key-file", str(pair.key)]
        file = self.folder / f"{PEOPLE.index(name)}.password"
        file.touch(mode=0o600)
        file.write_text(self.passwords[name] + "\n", encoding="utf-8")
        return ["--username", name, "--password-file", str(file)]

    def actor(self, name: str, **settings: Any) -> "Actor":
        """A connection as somebody, not made yet."""
        actor = Actor(self.broker.port, name, **settings)
        if self._authority is not None:
            pair = self._pairs[name]
            actor.client.tls_set(str(self._authority.cert), str(pair.cert), str(pair.key))
        else:
            actor.client.username_pw_set(name, self.passwords[name])
        return actor

    def __enter__(self) -> Self:
        self.broker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.broker.kill()


def _lines_of(acl: str) -> dict[str, list[tuple[str, str]]]:
    """Whom each line is about ("": everybody, by name) -> access and topic."""
    out: dict[str, list[tuple[str, str]]] = {}
    who = ""
    for line in acl.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "user":
            who = words[1]
            continue
        assert words[0] in ("topic", "pattern"), line
        assert words[1] in KINDS, line
        out.setdefault("" if words[0] == "pattern" else who, []).append((words[1], words[2]))
    return out


class _Careless(mqtt.Client):
    """Sends to any topic: the library must not check what a forger's would not."""

    @staticmethod
    def _raise_for_invalid_topic(topic: bytes) -> None:
        pass


class Actor:
    """One connection of a client that keeps nothing but what it heard."""

    def __init__(self, port: int, name: str, *, will: tuple[str, bytes] | None = None) -> None:
        self.name = name
        self._port = port
        self.came: list[tuple[str, bytes]] = []
        self.refused: str | None = None
        self._changed = threading.Condition()
        self._connected = self._gone = False
        self._subscribed: set[int | None] = set()
        self.client = _Careless(
            CallbackAPIVersion.VERSION2, client_id=f"actor-{os.getpid()}-{secrets.token_hex(6)}",
            reconnect_on_failure=False)     # who is thrown out stays out
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.on_subscribe = self._on_subscribe
        if will is not None:
            self.client.will_set(will[0], will[1], 1)

    def _on_connect(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        with self._changed:
            self._connected = not reason.is_failure
            self.refused = str(reason) if reason.is_failure else None
            self._changed.notify_all()

    def _on_disconnect(self, client: mqtt.Client, *_: Any) -> None:
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def _on_message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.came.append((message.topic, bytes(message.payload)))
            self._changed.notify_all()

    def _on_subscribe(self, client: mqtt.Client, userdata: Any, number: int, *_: Any) -> None:
        with self._changed:
            self._subscribed.add(number)
            self._changed.notify_all()

    @property
    def thrown_out(self) -> bool:
        return self._gone

    def until(self, holds: Callable[[], bool], what: str, wait_s: float = WAIT_S) -> None:
        deadline_s = time.monotonic() + wait_s
        with self._changed:
            while not holds():
                assert time.monotonic() < deadline_s, f"{self.name} waited in vain: {what}"
                self._changed.wait(0.05)

    def log_in(self) -> bool:
        """Connect; whether the broker let us."""
        self.client.connect("127.0.0.1", self._port)
        self.client.loop_start()
        self.until(lambda: self._connected or self.refused is not None or self._gone, "a CONNACK")
        return self._connected

    def __enter__(self) -> Self:
        assert self.log_in(), f"the broker does not let {self.name} in: {self.refused}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye, if the broker is still there."""
        self.client.disconnect()
        self.client.loop_stop()
        if (sock := self.client.socket()) is not None:
            sock.close()

    def subscribe(self, *filters: str) -> None:
        """Returns when the broker has answered, whatever it says: granted or not, delivery is what counts."""
        code, number = self.client.subscribe([(each, 1) for each in filters])
        assert code == mqtt.MQTT_ERR_SUCCESS, code
        self.until(lambda: number in self._subscribed or self._gone, "a SUBACK")

    def say(self, topic: str, payload: bytes | dict[str, Any], *, retain: bool = False) -> None:
        """Send bytes to a topic, as it is."""
        self.client.publish(topic, payload if isinstance(payload, bytes) else json.dumps(payload).encode(), 1, retain)

    def die(self) -> None:
        """End as a process that was killed: without a goodbye, so that the will is published."""
        sock = self.client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)
        self.until(lambda: self._gone, "its own end")
        self.client.loop_stop()
        sock.close()

    def got(self, topic: str, payload: bytes) -> None:
        """Wait for one message."""
        self.until(lambda: (topic, payload) in self.came, f"{payload[:80]!r} at {topic}")

    def receipt(self, topic: str, id: str) -> dict[str, Any]:
        """Wait for the answer of the daemon to one id."""
        def found() -> dict[str, Any] | None:
            bodies = (json.loads(body) for where, body in self.came if where == topic)
            return next((each for each in bodies if each.get("id") == id), None)
        self.until(lambda: found() is not None, f"a receipt for {id}")
        answer = found()
        assert answer is not None
        return answer
