"""The name in a certificate of ours, and its end: the broker takes the name for our user, so it is our name.

A light install has nothing that reads certificates, and Python's ssl shows those of others only.
So this walks the few fields up to the subject: DER is (tag, length, content), nested.
"""

import os
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

_COMMON_NAME = b"\x55\x04\x03"      # the object identifier 2.5.4.3
_VERSION = 0xA0
_VALIDITY = 3                       # after serial number, signature algorithm and issuer
_SUBJECT = 4
_UTC_TIME = 0x17                    # with two digits of the year; else a GeneralizedTime, which has four
_END = "-----END CERTIFICATE-----"


def common_name(file: str | os.PathLike[str]) -> str | None:
    """The common name of the first certificate in a PEM file; None for a file that is none or names nobody."""
    try:
        for _, group in _items(_fields(file)[_SUBJECT]):
            for _, attribute in _items(group):
                (_, kind), (_, value) = _items(attribute)
                if kind == _COMMON_NAME:
                    return value.decode()
    except (OSError, ValueError, IndexError, StopIteration):
        pass
    return None


def ended(file: str | os.PathLike[str]) -> datetime | None:
    """When the first certificate in a PEM file ended; None while it holds, and for a file that is none."""
    try:
        _, (tag, text) = _items(_fields(file)[_VALIDITY])
        end = datetime.strptime(text.decode(), "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ")
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    end = end.replace(tzinfo=UTC)
    return end if end < datetime.now(UTC) else None


def _fields(file: str | os.PathLike[str]) -> list[bytes]:
    """What is signed, without the version. Raises OSError and what comes of a file that is no certificate."""
    text = Path(file).read_text(encoding="ascii")
    begin, end = text.index("-----BEGIN CERTIFICATE-----"), text.index(_END)
    certificate = ssl.PEM_cert_to_DER_cert(text[begin:end + len(_END)])
    (_, signed), *_ = _items(next(_items(certificate))[1])
    return [content for tag, content in _items(signed) if tag != _VERSION]


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) one after another."""
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(data[at:at + count], "big")
            at += count
        yield tag, data[at:at + size]
        at += size
