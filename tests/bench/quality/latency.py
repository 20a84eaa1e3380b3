"""CPU milliseconds per suggestion, over the size of the history; one thread."""

import os
import statistics
import time
from dataclasses import replace
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from bayesd.optimize import suggest  # noqa: E402  # after the number of threads is set
from bayesd.study.problem import Fit, Observation, Problem  # noqa: E402
from bayesd_schemas.space import Space  # noqa: E402
from bayesd_schemas.study import Method  # noqa: E402

FLOATS: dict[str, Any] = {f"x{i}": {"type": "float", "low": -5, "high": 5} for i in range(6)}
SPACES: dict[str, dict[str, Any]] = {
    "10 floats": {**FLOATS, **{f"y{i}": {"type": "float", "low": -5, "high": 5} for i in range(4)}},
    "6 floats, 2 ints, 2 choices": {
        **FLOATS, "n": {"type": "int", "low": 1, "high": 9},
        "m": {"type": "int", "low": 1, "high": 300, "scale": "log"},
        "k": {"type": "categorical", "choices": list("abcd")}, "l": {"type": "categorical", "choices": list("abcd")}},
}


def outcome(params: Any) -> float:
    return float(sum((ord(v) - 97 if isinstance(v, str) else v) ** 2 for v in params.values()) ** 1.2)


def cpu_ms(problem: Problem, count: int = 1, times: int = 7) -> float:
    spent = []
    for i in range(times):
        now = replace(problem, number=problem.number + i)
        start = time.process_time()
        suggest(now, count)
        spent.append(time.process_time() - start)
    return 1000 * statistics.median(spent)


def main() -> None:
    print("CPU ms per suggestion (median)")
    for title, parameters in SPACES.items():
        space = Space.model_validate(parameters)
        for n in (25, 50, 100, 200, 500, 1000, 2000):
            start = Problem(space, ("minimize",), "bayes", 1, True, 1, 0)
            points = suggest(replace(start, method="random"), n).proposals
            problem = replace(start, number=n + 1, history=tuple(
                Observation(i, p.params, (outcome(p.params),)) for i, p in enumerate(points, start=1)))
            fit = suggest(problem).fit
            assert fit is not None
            due = Fit(fit.model, 1, fit.theta)
            print(f"{title:28s} n = {n:5d}   given fit {cpu_ms(replace(problem, fit=fit)):6.1f}   "
                  f"warm refit {cpu_ms(replace(problem, fit=due)):6.1f}   cold fit {cpu_ms(problem, times=3):6.1f}")
        plain: tuple[Method, ...] = ("random", "sobol", "grid")
        for method in plain:
            problem = Problem(space, ("minimize",), method, 1, True, 1, 0)
            print(f"{title:28s} {method:6s} {1000 * cpu_ms(problem, 128, 50) / 128:6.1f} us a proposal of 128")


if __name__ == "__main__":
    main()
