"""The files of a mosquitto that serves bayesd: its settings, and who may read and write what.

Identity is the topic, so these rights are the authority (contract, the rule on identity). They
are written out for each identity, as an access list or as roles of the Dynamic Security plugin.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bayesd_schemas.topics import Topics

Profile = Literal["passwords", "certificates", "dynamic"]
DAEMON, WORKER, OPERATOR = ROLES = ("daemon", "worker", "operator")

PLACE = "/etc/mosquitto/bayesd"                      # where the files lie on the broker's machine
STATE = "/var/lib/mosquitto"                         # what mosquitto itself writes
PLUGIN = "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so"
VERSION_TOPIC = "$SYS/broker/version"
PASSWORD_ROUNDS = 101                                # mosquitto's own; our passwords are random, so no guess is likely


@dataclass(frozen=True, slots=True)
class Right:
    """One line of an access list."""

    kind: Literal["read", "write", "readwrite"]
    topic: str


def rights(name: str, role: str, root: str = "") -> list[Right]:
    """What an identity may do, as the contract says it."""
    topics = Topics(root)
    below = topics.prefix
    public = [Right("read", topics.study("+")), Right("read", topics.daemon), Right("read", topics.head)]
    if role == DAEMON:
        return [Right("read", f"{below}/from/#"), Right("read", f"{below}/admin/#"), Right("write", f"{below}/to/#"),
                Right("readwrite", f"{below}/study/#"), Right("readwrite", topics.daemon),
                Right("readwrite", topics.head)]
    own = [Right("write", f"{below}/from/{name}/+"), Right("write", topics.presence(name)),
           Right("read", f"{below}/to/{name}/+")]
    if role == WORKER:
        return [*own, *public]
    return [*own, Right("write", topics.request(name)), *public, Right("read", topics.events("+")),
            Right("read", topics.presence("+")), Right("read", VERSION_TOPIC)]


# --- The access list -----------------------------------------------------------------------------------


def access_list(identities: Mapping[str, str], root: str = "", place: str = PLACE, revoked: Sequence[str] = ()) -> str:
    """`bayesd.acl` for identities, as roles by name. A revoked one, whose certificate is still good, may do nothing."""
    below = Topics(root).prefix
    lines = [f"# {place}/bayesd.acl: identity is the topic, so this file is the authority.",
             "# `bayesd deploy mosquitto` writes it; mosquitto reads it again on SIGHUP (systemctl reload "
             "mosquitto).", "",
             "# Everybody who is known to the broker, as themselves. One level, not #: a user called w2/tell could",
             "# otherwise write as w2.",
             f"pattern write {below}/from/%u/+", f"pattern write {below}/worker/%u", f"pattern read {below}/to/%u/+"]
    said = {f"{below}/from/", f"{below}/worker/", f"{below}/to/"}
    for name, role in sorted(identities.items(), key=lambda each: (ROLES.index(each[1]), each[0])):
        lines += ["", f"# {_WORDS[role]}", f"user {name}"]
        patterns = {f"{each}{name}" for each in said}
        lines += [f"topic {right.kind} {right.topic}" for right in rights(name, role, root)
                  if right.topic.removesuffix("/+") not in patterns]
    for name in sorted(revoked):
        lines += ["", "# Revoked: what everybody may do does not hold here.", f"user {name}", "topic deny #"]
    return "\n".join(lines) + "\n"


_WORDS = {DAEMON: "The daemon.", WORKER: "A worker: the public topics.",
          OPERATOR: "An operator, who is in `operators` of bayesd.toml as well; may ask and tell by hand."}


# --- Settings ------------------------------------------------------------------------------------------

_COMMON = """\
# Without it a round trip waits 48 ms for Nagle and delayed acknowledgements.
set_tcp_nodelay true
# Beyond 1,000 waiting messages mosquitto drops silently what it has acknowledged. Receipts make that
# safe, and this makes it rare.
max_queued_messages 100000
max_inflight_messages 1000
# Twice what bayesd reads, so that the daemon itself can answer a message that is too large.
max_packet_size 131072

# Comfort, not correctness: the daemon says everything again, and workers send until their receipt. So mosquitto saves
# once a second. At each change (autosave_on_changes true) it costs 0.3 ms a message and takes 440 messages a second
# instead of 8,900 (measured on 2 cores).
persistence true
autosave_on_changes false
autosave_interval 1
"""

_TLS = """\
listener {port}{bind}
cafile {place}/ca.crt
certfile {place}/broker.crt
keyfile {place}/broker.key
tls_version tlsv1.2
allow_anonymous false
require_certificate true
use_identity_as_username true
"""


def settings(profile: Profile, *, place: str = PLACE, state: str = STATE, plugin: str = PLUGIN, port: int | None = None,
             bind: str | None = None) -> str:
    """`bayesd.conf`. Without `bind`, passwords are for this machine only and certificates for every one."""
    if profile == "passwords":
        return (f"# /etc/mosquitto/conf.d/bayesd.conf: a password for each identity, on this machine only, since they\n"
                f"# would cross a network in the clear. `bayesd deploy mosquitto` writes it.\n"
                f"listener {port or 1883} {bind or '127.0.0.1'}\nallow_anonymous false\n"
                f"password_file {place}/bayesd.passwd\nacl_file {place}/bayesd.acl\n\n{_COMMON}")
    tls = _TLS.format(port=port or 8883, bind=f" {bind}" if bind else "", place=place)
    if profile == "certificates":
        return (f"# /etc/mosquitto/conf.d/bayesd.conf: TLS; a client is whom the authority of ca.crt says it is.\n"
                f"# `bayesd deploy certs` makes the certificates, `bayesd deploy mosquitto` this file.\n"
                f"{tls}acl_file {place}/bayesd.acl\n\n{_COMMON}")
    return (f"# /etc/mosquitto/conf.d/bayesd.conf: TLS, and a role for each identity in the Dynamic Security plugin.\n"
            f"# The plugin writes its file, so that one lies with mosquitto's state. `bayesd deploy mosquitto` "
            f"writes both.\n"
            f"{tls}plugin {plugin}\nplugin_opt_config_file {state}/bayesd-dynamic-security.json\n\n{_COMMON}")


# --- The Dynamic Security plugin -----------------------------------------------------------------------


def dynamic_security(identities: Mapping[str, str], root: str = "") -> str:
    """The plugin's file: nothing is allowed by default, and each identity has a role of its own name."""
    roles = [{"rolename": f"{role}-{name}", "acls": list(_acls(rights(name, role, root)))}
             for name, role in identities.items()]
    clients = [{"username": name, "textname": role, "roles": [{"rolename": f"{role}-{name}"}]}
               for name, role in identities.items()]
    deny = dict.fromkeys(("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe"), False)
    return json.dumps({"defaultACLAccess": deny, "clients": clients, "groups": [], "roles": roles}, indent=1) + "\n"


def _acls(allowed: Sequence[Right]) -> Iterator[dict[str, Any]]:
    def allow(kind: str, topic: str) -> dict[str, Any]:
        return {"acltype": kind, "topic": topic, "priority": 0, "allow": True}
    for right in allowed:
        if right.kind in ("write", "readwrite"):
            yield allow("publishClientSend", right.topic)
        if right.kind in ("read", "readwrite"):
            yield allow("publishClientReceive", right.topic)
            yield allow("subscribePattern", right.topic)
    yield allow("unsubscribePattern", "#")


# --- Passwords -----------------------------------------------------------------------------------------


def new_password() -> str:
    return secrets.token_urlsafe(24)


def password_line(name: str, password: str) -> str:
    """A line of mosquitto's password file, as mosquitto_passwd makes it."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PASSWORD_ROUNDS)
    return f"{name}:$7${PASSWORD_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


# --- The daemon's side ---------------------------------------------------------------------------------


def daemon_settings(profile: Profile, identities: Mapping[str, str], *, root: str = "", host: str = "localhost",
                    port: int | None = None) -> str:
    """`bayesd.toml` that fits."""
    name = next((name for name, role in identities.items() if role == DAEMON), "bayesd")
    operators = sorted(each for each, role in identities.items() if role == OPERATOR)
    scheme, usual = ("mqtt", 1883) if profile == "passwords" else ("mqtts", 8883)
    lines = ["# /etc/bayesd/bayesd.toml: `bayesd config show` prints what is in force.",
             f'broker    = "{scheme}://{host}{"" if port in (None, usual) else f":{port}"}"',
             *([f'username  = "{name}"'] if profile == "passwords" else []),
             *([f'root      = "{root}"'] if root else []),
             f"operators = {json.dumps(operators)}"]
    return "\n".join(lines) + "\n"


def unit_credentials() -> str:
    """A drop-in of bayesd.service: certificates in place of the password."""
    return ("# /etc/systemd/system/bayesd.service.d/certificates.conf: `bayesd deploy mosquitto` writes "
            "it.\n[Service]\n"
            "LoadCredential=\nLoadCredential=mqtt-ca:/etc/bayesd/ca.crt\nLoadCredential=mqtt-cert:/etc/bayesd/daemon.crt\n"
            "LoadCredential=mqtt-key:/etc/bayesd/daemon.key\n"
            "#LoadCredential=signing-key:/etc/bayesd/signing-key\n")
