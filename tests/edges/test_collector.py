"""The garbage collector does not look at a state again and again."""

import gc
from collections.abc import Iterator

import pytest

from bayesd import collector


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_has_grown_is_set_aside_once_it_is_enough() -> None:
    collector.set_aside()
    aside, state = gc.get_freeze_count(), [[object()] for _ in range(5000)]
    assert collector.grown(0, collector.EVENTS - 1) == 0
    assert gc.get_freeze_count() == aside
    assert collector.grown(0, collector.EVENTS) == collector.EVENTS
    assert gc.get_freeze_count() >= aside + len(state)
    assert len(gc.get_objects(generation=2)) < len(state)       # what a full collection looks at


def test_a_cycle_that_is_garbage_by_then_is_gone() -> None:
    class Node:
        gone = 0

        def __del__(self) -> None:
            Node.gone += 1

    node = Node()
    node.__dict__["itself"] = node
    del node
    collector.set_aside()
    assert Node.gone == 1
