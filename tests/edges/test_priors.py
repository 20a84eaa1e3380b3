"""A study with opinions on choices and on parameters that are not always there: what it tries first, and that an audit
derives it again."""

from pathlib import Path

from tests.edges.test_warm import audited, events_of

from bayesd import Study

FILE = """
name = "choices"
seed = 4
enqueue = [{ kernel = "sigmoid", C = 1.0 }, { kernel = "linear", C = 2.0 }]

[space]
kernel = { type = "categorical", choices = ["linear", "rbf", "poly", "sigmoid"] }
C = { type = "float", low = 1e-3, high = 1e3, scale = "log" }
degree = { type = "int", low = 1, high = 9, when = { kernel = ["poly"] } }

[prior]
kernel = { rbf = 0.5, poly = 0.5 }
degree = { centre = 3, confidence = "high" }
"""


def test_opinions_on_choices_are_tried_after_what_was_enqueued_and_are_derived_again(tmp_path: Path) -> None:
    path, log = tmp_path / "choices.toml", tmp_path / "log.db"
    path.write_text(FILE)
    with Study.from_file(path, log=log) as study:
        for _ in range(14):
            trial = study.ask()
            bad = 3.0 * (trial.params["kernel"] not in ("rbf", "poly"))
            study.tell(trial, bad + abs(float(trial.params.get("degree") or 5) - 3) + float(trial.params["C"]) / 1e3)
    events = events_of(log)
    said = [event.data for event in events if event.type == "trial.proposed"]
    assert [data["sampler"] for data in said[:2]] == ["enqueued"] * 2
    first = [data for data in said if data.get("stream", "").endswith("/prior")]
    assert first
    assert {data["params"]["kernel"] for data in first} <= {"rbf", "poly"}
    assert all(abs(data["params"].get("degree", 3) - 3) <= 2 for data in first)
    modelled = [data for data in said if data["sampler"] == "bayes"]
    assert all(0 < data["prior"] <= 1 for data in modelled[:3])
    assert sum(data["params"]["kernel"] in ("rbf", "poly") for data in modelled) > len(modelled) / 2
    assert {verdict.outcome for verdict in audited(events)} == {"same"}
