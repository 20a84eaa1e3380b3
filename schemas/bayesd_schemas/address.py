"""How a broker's address is shown to people: what may be a password in it never is."""

import re

_scheme = re.compile(r"\s*((mqtts?|tcp|tls|ssl|wss?|https?):)?//", re.IGNORECASE)
"""What may stand before the user. Any other `//` may be part of a password."""


def shown(url: str) -> str:
    """The address without what stands between a colon and the last @, whether or not it is a URL at all.

    mqtt://alice:secret@host -> mqtt://alice:***@host
    """
    before, at, host = url.rpartition("@")
    found = _scheme.match(before)
    scheme = found[0] if found is not None else ""
    name, colon, _ = before[len(scheme):].partition(":")
    return f"{scheme}{name}:***@{host}" if at and colon else url
