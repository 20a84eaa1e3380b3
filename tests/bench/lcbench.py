"""Learning curves of LCBench, as YAHPO's surrogate of it tells them: validation accuracy by epoch, 1 to 52.

The folder holds `model.onnx` and `encoding.json` of the scenario lcbench (Pfisterer et al., "YAHPO Gym", 2022; data
Zimmer et al., 2021). Reading it needs onnxruntime.
"""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS = 52
SPACE: dict[str, Any] = {
    "batch_size": {"type": "int", "low": 16, "high": 512, "scale": "log"},
    "learning_rate": {"type": "float", "low": 1e-4, "high": 0.1, "scale": "log"},
    "momentum": {"type": "float", "low": 0.1, "high": 0.99},
    "weight_decay": {"type": "float", "low": 1e-5, "high": 0.1},
    "num_layers": {"type": "int", "low": 1, "high": 5},
    "max_units": {"type": "int", "low": 64, "high": 1024, "scale": "log"},
    "max_dropout": {"type": "float", "low": 0, "high": 1}}
ACCURACY = 1                # of the surrogate's outputs
REMEDY = "--lcbench needs onnxruntime; pip install onnxruntime"


class Curves:
    """Whole curves of one data set."""

    def __init__(self, folder: Path, task: str) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise SystemExit(REMEDY)
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession((folder / "model.onnx").read_bytes(), options)
        codes = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"]
        if task not in codes:
            raise SystemExit(f"--task {task}: LCBench has {', '.join(code for code in codes if code != '#na#')}")
        self._task = np.full((EPOCHS, 1), codes[task], np.int32)

    def of(self, params: dict[str, Any]) -> list[float]:
        """Validation accuracy in percent after each epoch."""
        points = np.array([[epoch, *(params[name] for name in SPACE)] for epoch in range(1, EPOCHS + 1)], np.float32)
        category, numbers = (each.name for each in self._session.get_inputs())
        found = self._session.run([self._session.get_outputs()[0].name], {category: self._task, numbers: points})[0]
        return [float(value) for value in found[:, ACCURACY]]
