"""The name in a certificate of ours: the broker takes it for our user, so it is our name.

A light install has nothing that reads certificates, and Python's ssl shows those of others only.
So this walks the few fields up to the subject: DER is (tag, length, content), nested.
"""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

_COMMON_NAME = b"\x55\x04\x03"      # the object identifier 2.5.4.3
_VERSION = 0xA0
_SUBJECT = 4                        # after serial number, signature algorithm, issuer and validity
_END = "-----END CERTIFICATE-----"


def common_name(file: str | os.PathLike[str]) -> str | None:
    """The common name of the first certificate in a PEM file; None for a file that is none or names nobody."""
    try:
        text = Path(file).read_text(encoding="ascii")
        begin, end = text.index("-----BEGIN CERTIFICATE-----"), text.index(_END)
        certificate = ssl.PEM_cert_to_DER_cert(text[begin:end + len(_END)])
        (_, signed), *_ = _items(next(_items(certificate))[1])
        fields = [content for tag, content in _items(signed) if tag != _VERSION]
        for _, group in _items(fields[_SUBJECT]):
            for _, attribute in _items(group):
                (_, kind), (_, value) = _items(attribute)
                if kind == _COMMON_NAME:
                    return value.decode()
    except (OSError, ValueError, IndexError, StopIteration):
        pass
    return None


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
