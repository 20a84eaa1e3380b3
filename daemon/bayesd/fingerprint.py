"""What computes here: enough to say whether another machine may differ in the last bits.

Read through threadpoolctl and numpy and not from /proc/cpuinfo, which a hardened unit hides.
"""

import os
import platform
from typing import Any

import numpy
import scipy
import sklearn
from threadpoolctl import threadpool_info

PINNING = ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NPY_DISABLE_CPU_FEATURES",
           "GLIBC_TUNABLES")


def fingerprint(version: str) -> dict[str, Any]:
    """Versions, BLAS with its core type, SIMD, libc, architecture and the variables that pin them."""
    blas = sorted((info["internal_api"], str(info.get("version")), str(info.get("architecture")))
                  for info in threadpool_info() if info["user_api"] == "blas")
    return {
        "bayesd": version, "python": platform.python_version(), "numpy": numpy.__version__,
        "scipy": scipy.__version__, "scikit_learn": sklearn.__version__,
        "blas": [{"name": name, "version": number, "core": core} for name, number, core in blas],
        "simd": _simd(), "libc": "-".join(platform.libc_ver()), "machine": platform.machine(),
        "system": platform.system(), "pinned": {name: os.environ[name] for name in PINNING if name in os.environ}}


def _simd() -> list[str]:
    """SIMD features that numpy found and uses, if this numpy tells."""
    try:
        config = numpy.show_config(mode="dicts")
    except TypeError:
        return []
    found: list[str] = list((config or {}).get("SIMD Extensions", {}).get("found", []))
    return sorted(found)
