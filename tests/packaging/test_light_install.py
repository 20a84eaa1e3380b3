"""What a worker installs stays light, and the wheel holds what it must."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "scipy", "sklearn", "aiosqlite", "orjson", "threadpoolctl", "iotcore")


def modules_after(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"],
                          capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import bayesd_client", "import bayesd_schemas.generate", "import bayesd, bayesd.bus",
                                  "import bayesd.cli"])
def test_a_worker_and_the_client_verbs_import_nothing_heavy(code: str) -> None:
    assert not modules_after(code) & set(HEAVY)


def test_a_light_install_answers_a_daemon_verb_with_the_line_to_type(tmp_path: Path) -> None:
    # A light install, simulated: the heavy packages cannot be found.
    code = (f"import sys\n"
            f"class No:\n"
            f"    def find_spec(self, name, path=None, target=None):\n"
            f"        if name.split('.')[0] in {HEAVY!r}:\n"
            f"            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)\n"
            f"sys.meta_path.insert(0, No())\n"
            f"from bayesd.cli import main\n"
            f"sys.argv = ['bayesd', 'serve', '--log', {str(tmp_path / 'log.db')!r}]\n"
            f"sys.exit(main())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "pip install 'bayesd[daemon]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_dependency_is_bounded_and_named_in_the_readme() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    for line in [*project["dependencies"], *project["optional-dependencies"]["daemon"]]:
        name = line.split(">=")[0]
        assert ">=" in line
        assert "<" in line, f"{line} has no upper bound"
        assert name in readme, f"the README does not say what {name} does for us"


@pytest.mark.slow
def test_the_wheel_holds_three_packages_and_their_types(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps",
                    "--wheel-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("bayesd", "bayesd_client", "bayesd_schemas"):
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    assert not [name for name in names if name.startswith("tests")]
    for name in ("bayesd-verify.py", "bayesd-verify.mjs"):      # packs carry them
        assert f"bayesd/verify/{name}" in names
