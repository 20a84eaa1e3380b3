"""What the README says is so: its commands exist, its code runs, its study file is valid."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click import Command, Context, Group

from bayesd.cli import bayesd as cli
from bayesd.config import Config
from bayesd_schemas.study import StudySpec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in [ROOT / "README.md", ROOT / "deploy" / "README.md"]}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every `bayesd ...` command line in the pages."""
    found = []
    for text in PAGES.values():
        for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found += [line for line in block.splitlines() if line.startswith("bayesd ")]
        found += [match.replace("\n", " ") for match in re.findall(r"`(bayesd [a-z][^`]*)`", text)]
    return [shlex.split(line.split("  #")[0]) for line in found]


def test_every_command_of_the_pages_is_there_with_its_options() -> None:
    lines = commands()
    assert len(lines) > 10
    for words in lines:
        command: Command = cli
        context = Context(cli)
        rest = words[1:]
        while isinstance(command, Group) and rest and not rest[0].startswith("-"):
            if rest[0] == "|":
                break
            below = command.get_command(context, rest[0])
            assert below is not None, f"there is no {' '.join(words)}"
            command, rest = below, rest[1:]
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            if word == "--":
                break
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{' '.join(words)}: no option {word}"


def test_the_study_file_is_valid() -> None:
    whole, *more = blocks("toml")
    spec = StudySpec.model_validate(tomllib.loads(whole))
    assert spec.name == "digits-svm"
    for part in more:
        wider = StudySpec.model_validate({**tomllib.loads(whole), **tomllib.loads(part)})
        assert tomllib.loads(part).keys() <= wider.model_fields_set


def test_the_study_in_one_process_runs_as_it_stands() -> None:
    (code,) = [block for block in blocks("python") if "from bayesd import Study" in block]
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert "Finished(" in done.stdout


WORKERS = [block for block in blocks("python") if "@bayesd.worker" in block]


@pytest.mark.parametrize("code", WORKERS, ids=range(len(WORKERS)))
def test_a_python_worker_compiles_and_its_objective_is_a_plain_function(code: str) -> None:
    names: dict[str, object] = {"__name__": "readme"}
    exec("import bayesd_client as bayesd\nfrom sklearn.model_selection import StratifiedKFold", names)
    exec(compile(code, "README.md", "exec"), names)    # the README is ours
    assert callable(names["objective"])


LINKS = sorted({match for text in PAGES.values() for match in re.findall(r"\]\(([^)#:]+)\)", text)})


@pytest.mark.parametrize("path", LINKS)
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists() or (ROOT / "deploy" / path).exists()


def test_every_make_target_of_the_readme_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]+)", README)) - {"and"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target} is not there"


def test_the_sample_settings_are_settings() -> None:
    said = tomllib.loads((ROOT / "deploy" / "systemd" / "bayesd.toml").read_text())
    Config.model_validate(said)
