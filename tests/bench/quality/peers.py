"""Other optimisers behind the simulator's two calls, each as its own documentation uses it.

Defaults of the installed release, except what a fair race needs: one thread, no talk, a seed. A peer is
imported when it is made. Some know nothing of conditions: they see the whole space, and the parameters
that are not active in a point are dropped from it. A failed trial is told as the peer would have it.
"""

import logging
import math
import tempfile
from importlib import import_module
from typing import Any

import numpy as np

from bayesd_schemas.space import FloatParameter, IntParameter, Parameter, Space, typed


def is_log(parameter: FloatParameter | IntParameter) -> bool:
    """The tasks have linear and log scales and no steps, which every peer has as well."""
    if parameter.scale == "power" or parameter.step is not None:
        raise ValueError("the peers know neither scale power nor step")
    return parameter.scale == "log"


def whole(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """The active part of a point that has a value for every parameter, brought back from a peer's types."""
    return space.active({name: typed(parameter, inside(parameter, values[name])) for name, parameter in space.items()})


def inside(parameter: Parameter, value: Any) -> Any:
    """A number on an edge may come back a rounding outside of it, and an int as a float."""
    if isinstance(parameter, (FloatParameter, IntParameter)):
        number = round(float(value)) if isinstance(parameter, IntParameter) else float(value)
        return min(max(number, parameter.low), parameter.high)
    return value.item() if hasattr(value, "item") else value


class Optuna:
    """Define by run: a parameter whose condition does not hold is not suggested."""

    def __init__(self, space: Space, seed: int, budget: int) -> None:
        self.space = space
        self.optuna: Any = import_module("optuna")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        self.study = self.optuna.create_study(direction="minimize", sampler=self.sampler(seed))

    def sampler(self, seed: int) -> Any:
        raise NotImplementedError

    def ask(self) -> tuple[Any, dict[str, Any]]:
        trial, params = self.study.ask(), dict[str, Any]()
        for name in self.space.ordered():
            if self.space.is_active(name, params):
                params[name] = self.suggested(trial, name, self.space[name])
        return trial, params

    def suggested(self, trial: Any, name: str, of: Parameter) -> Any:
        if isinstance(of, IntParameter):
            return trial.suggest_int(name, of.low, of.high, log=is_log(of))
        if isinstance(of, FloatParameter):
            return trial.suggest_float(name, of.low, of.high, log=is_log(of))
        return trial.suggest_categorical(name, of.choices)

    def tell(self, key: Any, value: float | None) -> None:
        if value is None:
            self.study.tell(key, state=self.optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(key, value)


class OptunaTPE(Optuna):
    def sampler(self, seed: int) -> Any:
        return self.optuna.samplers.TPESampler(seed=seed)


class OptunaGP(Optuna):
    """The Gaussian process sees the parameters that every trial has; conditional ones go to TPE."""

    def sampler(self, seed: int) -> Any:
        return self.optuna.samplers.GPSampler(
            seed=seed, independent_sampler=self.optuna.samplers.TPESampler(seed=seed, multivariate=False))


class Smac:
    """The facade for hyperparameters (a random forest), asked and told.

    Its cost of a crash is infinite unless one sets it, which the forest of this facade refuses as NaN
    (2.4.1). So a crash costs what the worst success cost, and is told once there is one.
    """

    def __init__(self, space: Space, seed: int, budget: int) -> None:
        self.space = space
        configs: Any = import_module("ConfigSpace")
        conditions: Any = import_module("ConfigSpace.conditions")
        smac: Any = import_module("smac")
        of = configs.ConfigurationSpace(seed=seed)
        made: dict[str, Any] = {}
        for name, parameter in space.items():
            if isinstance(parameter, IntParameter):
                made[name] = configs.Integer(name, (parameter.low, parameter.high), log=is_log(parameter))
            elif isinstance(parameter, FloatParameter):
                made[name] = configs.Float(name, (parameter.low, parameter.high), log=is_log(parameter))
            else:
                made[name] = configs.Categorical(name, parameter.choices)
        of.add(list(made.values()))
        for name, parameter in space.items():
            wanted = [conditions.InCondition(made[name], made[parent], list(wanted))
                      for parent, wanted in parameter.conditions()]
            if wanted:
                of.add(wanted[0] if len(wanted) == 1 else conditions.AndConjunction(*wanted))
        self.folder = tempfile.TemporaryDirectory(prefix="smac-")   # it writes one, asked or not
        scenario = smac.Scenario(of, deterministic=True, n_trials=budget, seed=seed, output_directory=self.folder.name)
        self.smac = smac.HyperparameterOptimizationFacade(
            scenario, lambda config, seed=0: 0.0, overwrite=True, logging_level=logging.CRITICAL)
        self.worst, self.crashed = -math.inf, list[Any]()
        self.history: Any = import_module("smac.runhistory.dataclasses")
        self.status: Any = import_module("smac.runhistory.enumerations").StatusType

    def ask(self) -> tuple[Any, dict[str, Any]]:
        info = self.smac.ask()
        found = dict(info.config)
        return info, {name: inside(self.space[name], found[name]) for name in self.space.ordered() if name in found}

    def tell(self, key: Any, value: float | None) -> None:
        if value is None:
            self.crashed.append(key)
        else:
            self.worst = max(self.worst, value)
            self.smac.tell(key, self.history.TrialValue(cost=value, status=self.status.SUCCESS))
        while self.crashed and math.isfinite(self.worst):
            self.smac.tell(self.crashed.pop(), self.history.TrialValue(cost=self.worst, status=self.status.CRASHED))


class Hebo:
    """Knows neither pending nor failed trials: it is told what succeeded.

    Release 0.3.6 asks for a numpy that is older than bayesd takes, but runs on 2.4.
    """

    def __init__(self, space: Space, seed: int, budget: int) -> None:
        self.space = space
        torch: Any = import_module("torch")
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        np.random.seed(seed)    # its evolution strategy takes its random numbers from here
        rows = [{"name": name, **self.row(parameter)} for name, parameter in space.items()]
        design = import_module("hebo.design_space.design_space").DesignSpace().parse(rows)
        self.hebo: Any = import_module("hebo.optimizers.hebo").HEBO(design, scramble_seed=seed)

    def row(self, of: Parameter) -> dict[str, Any]:
        if isinstance(of, (IntParameter, FloatParameter)):
            kind = {(int, True): "pow_int", (int, False): "int", (float, True): "pow", (float, False): "num"}[
                int if isinstance(of, IntParameter) else float, is_log(of)]
            return {"type": kind, "lb": of.low, "ub": of.high, **({"base": 10} if is_log(of) else {})}
        return {"type": "cat", "categories": list(of.choices)}

    def ask(self) -> tuple[Any, dict[str, Any]]:
        found = self.hebo.suggest(n_suggestions=1)
        return found, whole(self.space, found.iloc[0].to_dict())

    def tell(self, key: Any, value: float | None) -> None:
        if value is not None:
            self.hebo.observe(key, np.array([[value]]))


class Ax:
    """The client with its default way of generating points."""

    def __init__(self, space: Space, seed: int, budget: int) -> None:
        self.space = space
        import_module("torch").set_num_threads(1)
        logging.disable(logging.WARNING)
        configs: Any = import_module("ax.api.configs")
        self.client: Any = import_module("ax.api.client").Client(random_seed=seed)
        parameters = []
        for name, of in space.items():
            if isinstance(of, (IntParameter, FloatParameter)):
                kind = "int" if isinstance(of, IntParameter) else "float"
                parameters.append(configs.RangeParameterConfig(
                    name=name, bounds=(of.low, of.high), parameter_type=kind,
                    scaling="log" if is_log(of) else "linear"))
            else:
                parameters.append(configs.ChoiceParameterConfig(
                    name=name, values=list(of.choices), parameter_type="str", is_ordered=False))
        self.client.configure_experiment(parameters=parameters)
        self.client.configure_optimization(objective="-loss")

    def ask(self) -> tuple[Any, dict[str, Any]]:
        ((key, found),) = self.client.get_next_trials(max_trials=1).items()
        return key, whole(self.space, found)

    def tell(self, key: Any, value: float | None) -> None:
        if value is None:
            self.client.mark_trial_failed(key)
        else:
            self.client.complete_trial(key, raw_data={"loss": value})
