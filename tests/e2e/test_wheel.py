"""The wheel alone, from a folder where nothing of the checkout is to be found."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

EVERY_MODULE = """
import importlib, pathlib, pkgutil, sys
import seqwm
assert pathlib.Path(seqwm.__file__).is_relative_to(sys.argv[1]), seqwm.__file__
names = [module.name for module in pkgutil.walk_packages(seqwm.__path__, "seqwm.") if module.name != "seqwm.__main__"]
for name in names:
    importlib.import_module(name)
for name in seqwm.__all__:
    getattr(seqwm, name)
print(len(names))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("seqwm-*.whl")
    zipfile.ZipFile(file).extractall(folder / "site")
    return folder / "site"


def run(wheel, folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTHONPATH": str(wheel), "SEQWM_CACHE": str(folder / "cache"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_holds_recipes_data_and_cards_and_no_tests(wheel):
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {"seqwm"}
    for name in ("recipes/quickstart.yaml", "datasets/cartpole/dataset.yaml", "model_cards/template.md"):
        assert (wheel / "seqwm" / "_share" / name).is_file()
    assert (wheel / "seqwm" / "py.typed").is_file()
    assert not list(wheel.rglob("test_*.py"))


def test_every_public_module_of_a_wheel_imports(wheel, tmp_path):
    assert int(run(wheel, tmp_path, "-c", EVERY_MODULE, str(wheel))) > 60


def test_the_quickstart_runs_from_a_wheel(wheel, tmp_path):
    small = ["--set", "train.steps=3", "--set", "evaluate.episodes=2", "--set", "train.track=[]"]
    out = run(wheel, tmp_path, "-m", "seqwm", "train", "recipes/quickstart.yaml", *small)
    assert out.strip().splitlines()[-1] == "runs/quickstart"
    made = {path.name for path in (tmp_path / "runs" / "quickstart").iterdir()}
    assert {"model", "evaluation.json", "curve.png", "replay.mp4", "README.md"} <= made
