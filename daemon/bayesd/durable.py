"""A file that a crash at any moment leaves whole or not at all."""

import os
from pathlib import Path


def write_private(path: Path, text: bytes) -> None:
    """Write a file that is its owner's alone, whole or not at all; one that is there keeps owner and mode.
    Raises OSError."""
    before = path.stat() if path.exists() else None
    new = path.with_name(f".{path.name}.{os.getpid()}")
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(file, "wb") as draft:
            if before is not None:
                os.fchown(file, before.st_uid, before.st_gid)
                os.fchmod(file, before.st_mode & 0o777)
            draft.write(text)
            draft.flush()
            os.fsync(draft.fileno())
        put_in_place(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def put_in_place(new: Path, path: Path) -> None:
    """Give a finished and flushed file its name, for good."""
    os.rename(new, path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush names: a new name of a file is on the disk when its folder is."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
