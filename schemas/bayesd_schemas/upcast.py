"""Old events in today's shape: pure steps from one version of a type's data to the next.

The bytes in a log are never rewritten; what was hashed stays the truth. When an event is read whose `tv` is
below the version that this release writes, its data takes the steps between. A step is for a change that a
default cannot express, such as a field that is split in two; a new meaning is a new type.

    STEPS["trial.completed", 1] = lambda data: ...      # data of version 1 -> data of version 2

A type without steps has version 1. An event of a later version than ours is like an unknown type: a critical
one stops the reader, with the advice to use the newer release.
"""

from collections.abc import Callable, Mapping
from typing import Any

Data = dict[str, Any]
Step = Callable[[Data], Data]

STEPS: dict[tuple[str, int], Step] = {}


def versions(steps: Mapping[tuple[str, int], Step]) -> dict[str, int]:
    """Type -> the version that its steps lead to."""
    found: dict[str, int] = {}
    for type, tv in steps:
        found[type] = max(found.get(type, 1), tv + 1)
    missing = [(type, tv) for type, last in found.items() for tv in range(1, last) if (type, tv) not in steps]
    if missing:
        raise ValueError(f"no step from version {missing[0][1]} of {missing[0][0]}")
    return found


VERSIONS = versions(STEPS)
"""Version that this release writes, of types that have more than one."""


def upcast(type: str, tv: int, data: Data) -> Data:
    """Data of version `tv` in the shape of today's. Data of today's version is returned as it is."""
    for version in range(tv, VERSIONS.get(type, 1)):
        data = STEPS[type, version](data)
    return data
