"""How a broker's address is shown to people: what may be a password in it never is."""


def shown(url: str) -> str:
    """The address without what stands between a colon and the last @, whether or not it is a URL at all.

    mqtt://alice:secret@host -> mqtt://alice:***@host
    """
    before, at, host = url.rpartition("@")
    scheme, slashes, user = before.partition("//")
    if not slashes:
        scheme, user = "", before
    name, colon, _ = user.partition(":")
    return f"{scheme}{slashes}{name}:***@{host}" if at and colon else url
