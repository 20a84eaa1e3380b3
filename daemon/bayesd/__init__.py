"""bayesd: an event-sourced asynchronous tuning daemon.

    from bayesd import Study         # ask and tell in one process: the same rules, the same engine

The daemon is `bayesd.service`, its state `bayesd.study.state`, the optimiser `bayesd.optimize`.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesd.inprocess import Study as Study
    from bayesd.inprocess import Trial as Trial

try:
    __version__ = version("bayesd")
except PackageNotFoundError:       # a source tree that is not installed
    __version__ = "0"

__all__ = ["Study", "Trial", "__version__"]


def __getattr__(name: str) -> Any:
    # Late: `bayesd worker run` on a light install must not need numpy.
    if name in ("Study", "Trial"):
        try:
            from bayesd import inprocess
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("bayesd"):
                raise
            raise ImportError(f"bayesd.{name} needs the daemon, and {error.name} is not installed: "
                              "pip install 'bayesd[daemon]'") from error
        return getattr(inprocess, name)
    raise AttributeError(f"module 'bayesd' has no attribute {name!r}")
