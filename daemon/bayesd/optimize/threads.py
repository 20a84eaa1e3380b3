"""One BLAS thread around every computation.

Two reasons, both measured. A second thread changes the last bits of a product, so the same log
would not give the same point on another machine. And the matrices here are small: on two
threads a fit is slower than on one and starves the event loop beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy  # noqa: F401  # its BLAS must be loaded before the libraries are counted
import scipy.linalg  # noqa: F401  # scipy brings a second BLAS of its own
from threadpoolctl import ThreadpoolController

_lock = Lock()
_inside = 0
_limiter: list[Any] = []


@cache
def _controller() -> Any:
    # Looking for the loaded libraries takes milliseconds, setting a limit takes microseconds.
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread until the last of the concurrent callers has left.

    The limit belongs to the process. If every caller restored what it found, one study's fit
    would end the limit in the middle of another's, so the callers are counted. The lock is held
    while the limit is set, not across the fit.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _free_control()
            _limiter.append(_controller().limit(limits=1, user_api="blas"))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _free_control()
                _limiter.pop().restore_original_limits()
                _free_control()


def _free_control() -> None:
    """Let this thread set limits, whichever thread did before.

    Newer releases of threadpoolctl silently ignore every thread but the first that set a limit
    for as long as it lives; the threads that fit come from a pool and are never the same.
    """
    for library in _controller().lib_controllers:
        clear = getattr(library, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)
