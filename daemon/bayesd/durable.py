"""A file that a crash at any moment leaves whole or not at all."""

import os
from pathlib import Path


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
