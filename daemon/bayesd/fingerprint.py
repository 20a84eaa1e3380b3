"""What computes here: enough to say whether another machine may differ in the last bits.

Read through threadpoolctl and numpy and not from /proc/cpuinfo, which a hardened unit hides. The
log holds it once in `engine.fingerprint`; every proposal names it by the beginning of its hash.
"""

import importlib
import os
import pkgutil
import platform
import re
from typing import Any

import numpy
import scipy
import sklearn
from threadpoolctl import threadpool_info

from bayesd import optimize
from bayesd.optimize.threads import one_blas_thread
from bayesd.study.canonical import canonical, leaf_hash

PINNING = ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "GLIBC_TUNABLES")
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*$")


def fingerprint(version: str) -> dict[str, Any]:
    """The engine, versions, BLAS with its core type and threads, SIMD, libc, architecture and the variables
    that pin them.

    The threads are those that the engine computes with: one, whatever the variables say, if BLAS does as told.
    """
    settings = engine_settings()      # imports the whole engine, and with it every BLAS that it uses
    with one_blas_thread():
        blas = sorted((info["internal_api"], str(info.get("version")), str(info.get("architecture")),
                       int(info["num_threads"])) for info in threadpool_info() if info["user_api"] == "blas")
    return {
        "bayesd": version,
        "engine": {"version": optimize.VERSION, "settings": leaf_hash(canonical(settings)).hex()[:16]},
        "python": platform.python_version(), "numpy": numpy.__version__,
        "scipy": scipy.__version__, "scikit_learn": sklearn.__version__,
        "blas": [{"name": name, "version": number, "core": core, "threads": threads}
                 for name, number, core, threads in blas],
        "simd": _simd(), "libc": "-".join(platform.libc_ver()), "machine": platform.machine(),
        "system": platform.system(), "pinned": {name: os.environ[name] for name in PINNING if name in os.environ}}


def engine_settings() -> dict[str, Any]:
    """Every constant of every module of the engine, by name: whoever changes one has another engine."""
    found: dict[str, Any] = {}
    for module in sorted(each.name for each in pkgutil.iter_modules(optimize.__path__)):
        for name, value in vars(importlib.import_module(f"{optimize.__name__}.{module}")).items():
            if _CONSTANT.match(name) and (plain := _plain(value)) is not None:
                found[f"{module}.{name}"] = plain
    return found


def _plain(value: Any) -> Any:
    """A constant as JSON, None if it is more than numbers and words. Twelve digits of a float: one that a C
    library computed may differ in the last."""
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float, numpy.number)):
        return f"{float(value):.12g}"
    if isinstance(value, numpy.ndarray):
        return [_plain(each) for each in value.ravel().tolist()]
    if isinstance(value, (tuple, list)):
        return None if any(_plain(each) is None for each in value) else [_plain(each) for each in value]
    return None


def _simd() -> list[str]:
    """SIMD features that numpy found and uses, if this numpy tells."""
    try:
        config = numpy.show_config(mode="dicts")
    except TypeError:
        return []
    found: list[str] = list((config or {}).get("SIMD Extensions", {}).get("found", []))
    return sorted(found)
