"""All tasks by name, and how a command line picks from them."""

from functools import cache

from tests.bench.quality import functions, live, mixed
from tests.bench.quality.task import Task

FAMILIES = ("functions", "noisy", "mixed", "live")


@cache
def tasks() -> dict[str, Task]:
    """By name; tasks of one family together, in the order of `FAMILIES`."""
    made = [*functions.tasks(), *mixed.tasks(), *live.tasks()]
    return {task.name: task for family in FAMILIES for task in made if task.family == family}


def pick(families: list[str], prefixes: list[str]) -> list[Task]:
    """Those of the families, or if names are given, those that begin with one of them."""
    for family in families:
        if family not in FAMILIES:
            raise ValueError(f"there is no family {family!r}; there are {', '.join(FAMILIES)}")
    if not prefixes:
        return [task for task in tasks().values() if task.family in families]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in tasks()):
            raise ValueError(f"no task begins with {prefix!r}; there are {', '.join(tasks())}")
    return [task for name, task in tasks().items() if name.startswith(tuple(prefixes)) and task.family in families]
