"""Study files: three notations that mean the same, and one sentence for what is wrong."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from bayesd.files import BadFile, read_changes, read_study

GOOD = {
    "toml": """\
name = "digits-svm"
metric = "accuracy"
direction = "maximize"
seed = 7

[budget]
trials = 60
wall = "2h"

[space.C]
type = "float"
low = 1e-3
high = 1e3
scale = "log"

[space.kernel]
type = "categorical"
choices = ["rbf", "poly"]

[space.degree]
type = "int"
low = 2
high = 5
when = { kernel = "poly" }
""",
    "yaml": """\
name: digits-svm
metric: accuracy
direction: maximize
seed: 7
budget:
  trials: 60
  wall: 2h
space:
  C: {type: float, low: 1e-3, high: 1e3, scale: log}
  kernel:
    type: categorical
    choices: [rbf, poly]
  degree:
    type: int
    low: 2
    high: 5
    when:
      kernel: poly
""",
    "json": """\
{"name": "digits-svm", "metric": "accuracy", "direction": "maximize", "seed": 7,
\t"budget": {"trials": 60, "wall": "2h"},
\t"space": {
\t\t"C": {"type": "float", "low": 1e-3, "high": 1e3, "scale": "log"},
\t\t"kernel": {"type": "categorical", "choices": ["rbf", "poly"]},
\t\t"degree": {"type": "int", "low": 2, "high": 5, "when": {"kernel": "poly"}}}}
""",
}


def write(folder: Path, text: str, kind: str = "toml") -> str:
    path = folder / f"study.{kind}"
    path.write_text(text, encoding="utf-8")
    return str(path)


def complaint(folder: Path, text: str, kind: str = "toml") -> str:
    """What is said of a bad file, without its folder."""
    with pytest.raises(BadFile) as caught:
        read_study(write(folder, text, kind))
    said = str(caught.value)
    assert "\n" not in said
    return said.replace(f"{folder}/", "")


def test_three_notations_mean_the_same(tmp_path: Path) -> None:
    read = [read_study(write(tmp_path, text, kind)) for kind, text in GOOD.items()]
    assert read[0].spec == read[1].spec == read[2].spec
    assert read[0].data == read[1].data | {"space": read[0].data["space"]}
    json.dumps([each.data for each in read])      # all of it can go over the wire


def test_toml_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(GOOD["toml"]))
    assert read_study("-").spec.name == "digits-svm"


def test_yaml_words_are_words(tmp_path: Path) -> None:
    """YAML 1.1 would make of these: true, false, a date, octal 8, and text."""
    text = """\
name: words
space:
  x: {type: categorical, choices: [on, no, 2026-01-01, 1e-3, true, null]}
"""
    study = read_study(write(tmp_path, text, "yaml"))
    assert study.data["space"]["x"]["choices"] == ["on", "no", "2026-01-01", 1e-3, True, None]


@pytest.mark.parametrize(("old", "new", "said"), [
    ('direction = "maximize"', 'direktion = "maximize"',
     "study.toml:3: direktion: unknown key; did you mean direction?"),
    ("trials = 60", "trails = 60", "study.toml:7: budget.trails: unknown key; did you mean trials?"),
    ("low = 1e-3", "low = 5000.0", "study.toml:12: space.C.low: low must be below high, not 5000.0 and 1000.0"),
    ("low = 1e-3", "low = -1.0", "study.toml:14: space.C.scale: scale log needs low above 0, not -1.0"),
    ("low = 1e-3\n", "lo = 1e-3\n", "study.toml:10: space.C.low: this key is missing; there is lo, is that it?"),
    ('scale = "log"', 'scale = "logarithmic"', 'study.toml:14: space.C.scale: expected'),
    ('type = "int"', 'type = "integer"',
     "study.toml:21: space.degree.type: type is one of float, int, categorical, ordinal"),
    ('when = { kernel = "poly" }', 'when = { kernel = "linear" }',
     "study.toml:24: space.degree.when: when kernel = 'linear', which kernel never takes"),
    ('when = { kernel = "poly" }', 'when = { kernal = "poly" }', "study.toml:24: space.degree.when:"),
    ("trials = 60", "trials = 0", "study.toml:7: budget.trials: expected"),
    ("trials = 60", 'trials = "many"', 'study.toml:7: budget.trials: expected a valid integer, not "many"'),
    ('wall = "2h"', 'wall = "two hours"', "study.toml:8: budget.wall: a time is a number of seconds"),
    ('name = "digits-svm"', 'name = "Digits SVM"', "study.toml:1: name: a name is up to 64 of a-z"),
    ("seed = 7", "seed = 7.5", "study.toml:4: seed: expected a valid integer, not 7.5"),
    ('choices = ["rbf", "poly"]', 'choices = ["rbf", "rbf"]',
     "study.toml:18: space.kernel.choices: choice 'rbf' is there twice"),
    ("seed = 7", "seed = ", "study.toml:4: this is not TOML"),
    ("seed = 7", 'seed = 7\nmethod = "bays"', 'study.toml:5: method: expected'),
])
def test_a_bad_toml_file_gets_one_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD["toml"]
    found = complaint(tmp_path, GOOD["toml"].replace(old, new, 1))
    assert said in found
    assert "For example: " in found


@pytest.mark.parametrize(("kind", "old", "new", "said"), [
    ("yaml", "trials: 60", "trials: 0", "study.yaml:6: budget.trials: expected"),
    ("yaml", "    high: 5", "    hihg: 5", "study.yaml:13: space.degree.high: this key is missing; there is hihg"),
    ("yaml", "seed: 7", "seed: [7", "study.yaml:5: this is not YAML"),
    ("yaml", "seed: 7", "seed: 7\nseed: 8", "study.yaml:5: seed is there already, on line 4"),
    ("json", '"trials": 60', '"trials": 0', "study.json:2: budget.trials: expected"),
    ("json", '"low": 2', '"low": 20', "study.json:6: space.degree.low: low must be below high, not 20 and 5"),
    ("json", '"seed": 7', '"seed": 7,,', "study.json:1: this is not JSON"),
    ("json", '"seed": 7', '"seed": 7, "seed": 8', "study.json:1: seed is there already"),
    ("json", '"seed": 7', '"seed": NaN', "study.json: NaN is not a number in JSON"),
])
def test_bad_yaml_and_json_files(tmp_path: Path, kind: str, old: str, new: str, said: str) -> None:
    assert old in GOOD[kind]
    assert said in complaint(tmp_path, GOOD[kind].replace(old, new, 1), kind)


def test_what_is_no_study_file_at_all(tmp_path: Path) -> None:
    assert "ends in .toml, .json, .yaml or .yml" in complaint(tmp_path, "x", "txt")
    assert "a study file holds keys and values" in complaint(tmp_path, "[1, 2]", "json")
    assert "space: this key is missing" in complaint(tmp_path, 'name = "x"\n')
    (tmp_path / "study.toml").write_bytes(b'name = "x"\nmetric = "\xff"\n')
    with pytest.raises(BadFile, match=r"study.toml:2: this is not UTF-8"):
        read_study(str(tmp_path / "study.toml"))
    with pytest.raises(BadFile, match="cannot be read"):
        read_study(str(tmp_path / "nothing.toml"))


def test_an_inline_table_has_its_line(tmp_path: Path) -> None:
    text = 'name = "x"\nbudget = { trials = 0 }\n[space]\nx = { type = "float", low = 3, high = 1 }\n'
    assert complaint(tmp_path, text).startswith("study.toml:2: budget.trials:")
    assert complaint(tmp_path, text.replace("= 0", "= 9")).startswith("study.toml:4: space.x.low:")


def test_several_objectives_have_their_lines(tmp_path: Path) -> None:
    text = GOOD["toml"].replace('metric = "accuracy"\ndirection = "maximize"\n', "") + \
        '[[objectives]]\nname = "a"\n[[objectives]]\nname = "b"\ndirection = "up"\n'
    assert "study.toml:27: objectives.1.direction: expected" in complaint(tmp_path, text)


@pytest.mark.parametrize("text", ["", "[", "name = 1\n[name]\n", "a.b.c = 1\n", '"space" = 3\n', "space = 3\nname = 4",
                                  "[space]\nx = 1\n", "[space.x]\ntype = 3\n", "[[space]]\n", "enqueue = [1]\n"])
def test_whatever_is_in_a_file_the_answer_is_a_sentence(tmp_path: Path, text: str) -> None:
    assert complaint(tmp_path, text).startswith("study.toml")


def test_changes_are_a_part_of_a_study_file(tmp_path: Path) -> None:
    changes: dict[str, Any] = read_changes(write(tmp_path, "[budget]\ntrials = 9\n"))
    assert changes == {"budget": {"trials": 9}}
