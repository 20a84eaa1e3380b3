"""Certificates, ours and the broker's, and why a broker did not take us."""

import asyncio
import contextlib
import datetime
import importlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bayesd.bus import BrokerAddress, BusError
from bayesd.call import Reach
from bayesd.doctor.finding import Finding

SOON = datetime.timedelta(days=14)
HANDSHAKE_S, ALERT_S = 5.0, 1.0
RENEW = "bayesd deploy certs FOLDER --renew"
EXPIRED, NOT_YET, MISMATCH, OTHER_HOST_ADDRESS = 10, 9, 62, 64     # verify codes of OpenSSL


def own(reach: Reach) -> Iterator[Finding]:
    """Our own certificate: whose it is, how long it holds, and whether the authority that we trust has made it."""
    file = reach.address.cert_file
    if file is None:
        return
    try:
        certificates: Any = importlib.import_module("bayesd.certificates")
    except ModuleNotFoundError:
        yield Finding("our certificate", "warn", "not looked at, since cryptography is not installed",
                      "pip install 'bayesd[daemon]'")
        return
    try:
        reach.address.tls_context()
        seen = certificates.read(file)
        fits = reach.address.ca_file is None or certificates.is_issued_by(file, reach.address.ca_file)
    except (BusError, certificates.CertificateError) as error:
        yield Finding("our certificate", "bad", str(error), "copy the pair again from where it was made")
        return
    words = f"{file} is {seen.name}'s until {seen.ends:%Y-%m-%d}"
    left = seen.ends - datetime.datetime.now(datetime.UTC)
    if left <= datetime.timedelta():
        yield Finding("our certificate", "bad", f"{file} of {seen.name} ended on {seen.ends:%Y-%m-%d}",
                      f"{RENEW}, then copy {seen.name}.crt and {seen.name}.key to here")
    elif seen.begins > datetime.datetime.now(datetime.UTC):
        yield Finding("our certificate", "bad", f"{file} of {seen.name} holds from {seen.begins:%Y-%m-%d %H:%M} UTC",
                      "set the clock of this machine")
    elif not fits:
        yield Finding("our certificate", "warn", f"{file} was not made by the authority in {reach.address.ca_file}",
                      "if the broker refuses it, take the pair and ca.crt from the same folder")
    elif seen.name != reach.client:
        yield Finding("our certificate", "bad", f"{file} is {seen.name}'s, but we call ourselves {reach.client}",
                      f"leave --client and --username out, or take {reach.client}'s certificate: the broker goes by it")
    elif left < SOON:
        yield Finding("our certificate", "warn", f"{words}: {left.days} days", f"{RENEW}, then copy the pair to here")
    else:
        yield Finding("our certificate", "ok", words)


async def of_broker(address: BrokerAddress) -> list[Finding]:
    """How long the broker's certificate holds; that it is good, the connection has shown."""
    if not address.tls:
        return []
    met = await _handshake(address, alert_s=0)
    if met.ends is None:
        return []
    left = met.ends - datetime.datetime.now(datetime.UTC)
    if left < SOON:
        return [Finding("broker's certificate", "warn", f"it ends on {met.ends:%Y-%m-%d}, in {left.days} days",
                        f"{RENEW}, then copy broker.crt and broker.key to the broker and restart it")]
    return [Finding("broker's certificate", "ok", f"trusted for {address.host} until {met.ends:%Y-%m-%d}")]


async def why_not(reach: Reach, said: str) -> str:
    """What to do about a broker that did not take us."""
    address = reach.address
    if "refused our login" in said:
        return (f"the user or its password is wrong: on the broker's machine, `mosquitto_passwd FILE "
                f"{address.username or 'NAME'}` sets a new one and `systemctl reload mosquitto` makes it known; with "
                "certificates, take one that the broker's authority has made")
    if "Nothing listens" in said or "not known" in said or "does not answer" in said or "cannot be reached" in said:
        return ("look whether the broker runs (systemctl status mosquitto) and where it listens (ss -ltn); `bayesd "
                "serve` brings one of its own on this machine")
    if not address.tls:
        return "if it wants TLS: --broker mqtts://..., with --ca-file; else look into the broker's log"
    met = await _handshake(address, alert_s=ALERT_S)
    if met.code in (EXPIRED, NOT_YET):
        which = "has ended" if met.code == EXPIRED else "is not valid yet: is this clock right?"
        return f"the broker's certificate {which}; {RENEW}, copy broker.crt and broker.key to the broker and restart it"
    if met.code in (MISMATCH, OTHER_HOST_ADDRESS):
        return (f"{address.host} is not a name in the broker's certificate: reach it under one that is, or `{RENEW} "
                f"--host {address.host} --host OTHER-NAMES`, copy broker.crt and broker.key there and restart it")
    if met.code is not None:
        return (f"the broker's certificate was not made by the authority in {address.ca_file or 'this system'}: give "
                "the ca.crt of the folder in which `bayesd deploy certs` made it with --ca-file")
    if "certificate_required" in met.alert or (address.cert_file is None and met.alert):
        return "the broker wants a certificate of ours: give --cert-file and --key-file"
    if "expired" in met.alert:
        return ("the broker says that our certificate has ended: what to do stands at `our certificate` above; if that "
                "is good, set the clock of the broker's machine")
    if met.alert:
        return (f"the broker refuses our certificate ({met.alert}): take the pair that its own authority made, from "
                "the folder of `bayesd deploy certs`")
    return "check the port, whether TLS is spoken there, and the broker's log"


@dataclass(frozen=True, slots=True)
class _Met:
    """How far a TLS connection comes: the verify code that stopped us, or the alert that stopped the broker."""

    code: int | None = None
    alert: str = ""
    ends: datetime.datetime | None = None


async def _handshake(address: BrokerAddress, alert_s: float) -> _Met:
    """Says hello and no more: a broker's refusal of our certificate comes after the handshake, and what we sent into a
    connection that it closed would make the system throw the refusal away."""
    writer = None
    ends = None
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls_context())
            found = writer.get_extra_info("peercert") or {}
            if "notAfter" in found:
                ends = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(found["notAfter"]), datetime.UTC)
            if alert_s:
                await asyncio.wait_for(reader.read(1), alert_s)
    except ssl.SSLCertVerificationError as error:
        return _Met(code=error.verify_code)
    except ssl.SSLError as error:
        return _Met(alert=(error.reason or str(error)).lower(), ends=ends)
    except (OSError, TimeoutError, BusError):
        pass
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return _Met(ends=ends)
