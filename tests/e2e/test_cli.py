"""Every verb through the command line, and the output of each one into the next."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seqwm.cli import main
from seqwm.data.store import TrajectoryStore
from seqwm.training.tracking import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """An empty working folder and cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQWM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def seqwm(capsys):
    """Runs a command line as typed; (status, what it printed, what it complained of)."""

    def run(line):
        capsys.readouterr()
        try:
            status = main(shlex.split(line))
        except SystemExit as stop:  # argparse: bad usage, --help
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def fresh(*arguments, **options):
    """The command in a process of its own, (seconds, process)."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)
    return time.perf_counter() - began, done


SMALL = "--set train.steps=3 --set evaluate.episodes=2 --set evaluate.targets=[100,500] --set train.track=[]"


def test_logs_become_a_model_that_logs_again_and_is_published(seqwm):
    """collect, inspect, validate, convert, train, evaluate, collect again, publish: each takes what came before."""
    assert seqwm("data collect CartPole-v1 --steps 400 --out logs --lanes 4")[0] == 0
    assert TrajectoryStore.open("logs").rows == 400
    status, out, _ = seqwm("data inspect logs --json")
    report = json.loads(out)
    assert status == 0
    assert (report["transitions"], report["environment"]) == (400, "CartPole-v1")
    assert "400 transitions" in seqwm("data inspect logs")[1]

    status, out, _ = seqwm("data convert logs --to parquet --out parquet")
    assert (status, "as Parquet" in out) == (0, True)
    assert seqwm("data convert parquet --out again")[0] == 0
    first, again = TrajectoryStore.open("logs"), TrajectoryStore.open("again")
    assert first.returns.tolist() == again.returns.tolist()
    status, out, _ = seqwm("data validate parquet --json")
    assert (status, json.loads(out)["valid"]) == (0, True)
    assert seqwm("data validate again")[0] == 0

    assert seqwm(f"train quickstart --out run --set data.source=again {SMALL}")[0] == 0
    status, out, _ = seqwm("evaluate run --targets 50 --episodes 2 --out evaluated")
    assert status == 0
    assert json.loads(Path("evaluated/evaluation.json").read_text())["episodes"]
    assert seqwm("data collect CartPole-v1 --policy run --target 50 --steps 60 --out dt --lanes 2")[0] == 0
    assert TrajectoryStore.open("dt").rows == 60

    assert seqwm("publish run user/model --dry-run published")[0] == 0
    assert {"README.md", "model.safetensors", "recipe.yaml"} <= {path.name for path in Path("published").iterdir()}
    assert seqwm("evaluate published --targets 50 --episodes 1")[0] == 0
    assert seqwm("train published/recipe.yaml --smoke --out anew")[0] == 0
    assert seqwm("data publish logs user/logs --dry-run dataset")[0] == 0
    assert seqwm("data validate dataset")[0] == 0


def test_a_study_is_a_table_and_a_figure(seqwm):
    Path("study.yaml").write_text(
        "title: Two seeds\nmethods:\n  BC: {recipe: behavior_cloning/cartpole}\nseeds: [0, 1]\n"
        "set: [train.steps=3, evaluate.episodes=2, 'train.track=[]', evaluate.replay=false]\n"
    )
    status, out, _ = seqwm("study study.yaml")
    assert (status, "| BC |" in out.replace("  ", " ")) == (0, True)
    assert len(json.loads(Path("results.json").read_text())["records"]) == 2
    assert Path("results.png").stat().st_size > 1000
    assert "| 2 x 2 |" in Path("results.md").read_text()


def test_a_finished_run_is_not_trained_over_and_a_stopped_one_goes_on(seqwm):
    line = f"train quickstart --out run {SMALL}"
    assert seqwm(line)[0] == 0
    status, _, complaint = seqwm(line)
    assert (status, "--resume" in complaint) == (1, True)
    longer = line.replace("train.steps=3", "train.steps=5")
    status, _, complaint = seqwm(f"{longer} --resume")
    assert status in (0, 1)
    assert [row["step"] for row in read_metrics(Path("run/metrics.jsonl"))][:3] == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("train quickstart --set train.stpes=1", "train.stpes: unknown key; did you mean 'steps'?"),
        ("train quickstrat", "did you mean 'quickstart'?"),
        ("train quickstart --set method=decision_transfomer", "did you mean 'decision_transformer'?"),
        ("data inspect nowhere", "nowhere"),
        ("evaluate nowhere/at/all", "nowhere/at/all"),
        ("publish nowhere user/name", "nowhere"),
        ("study nowhere.yaml", "nowhere.yaml"),
        ("data collect NoSuchWorld-v0 --steps 5 --out logs", "NoSuchWorld-v0"),
        ("data collect os:system --steps 5 --out logs", "os:system"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1(seqwm, line, complaint):
    status, _, printed = seqwm(line)
    assert status == 1
    assert complaint in printed
    assert printed.splitlines()[-1].startswith("seqwm: ")
    assert "Traceback" not in printed
    assert not Path("logs").exists()


def test_an_environment_is_collected_from_with_the_options_that_are_named(seqwm):
    line = "data collect FrozenLake-v1 --option is_slippery=false --option map_name=4x4 --steps 400 --out dry"
    assert seqwm(line)[0] == 0
    store = TrajectoryStore.open(Path("dry"))
    assert store.provenance["environment_options"] == {"is_slippery": False, "map_name": "4x4"}
    led: dict[tuple[int, int], set[int]] = {}
    for episode in store.episodes():
        for state, action, following in zip(
            episode.observations[:-1].tolist(), episode.actions.tolist(), episode.observations[1:].tolist(), strict=True
        ):
            led.setdefault((state, action), set()).add(following)
    assert len(led) > 20
    assert all(len(states) == 1 for states in led.values())  # on slippery ice there are up to three
    status, _, complaint = seqwm("data collect FrozenLake-v1 --option slippery --steps 40 --out wet")
    assert status == 1
    assert "--option slippery: expected NAME=VALUE" in complaint
    assert not Path("wet").exists()


@pytest.mark.parametrize("line", ["", "data", "no-such-verb", "train", "data collect"])
def test_bad_usage_is_status_2(seqwm, line):
    assert seqwm(line)[0] == 2


VERBS = ["train", "evaluate", "study", "publish"]
DATA_VERBS = ["inspect", "validate", "convert", "collect", "publish"]


@pytest.mark.parametrize("verb", [*VERBS, *(f"data {verb}" for verb in DATA_VERBS)])
def test_help_shows_examples_that_parse(seqwm, verb):
    from seqwm.cli import _parser

    status, out, _ = seqwm(f"{verb} --help")
    assert status == 0
    examples = re.findall(r"^  seqwm (.*)$", out.partition("examples:")[2], re.MULTILINE)
    assert examples
    for example in examples:
        assert _parser().parse_args(shlex.split(example)).run


def test_help_and_import_are_light():
    """Half a second and a second, with torch left where it is; the best of three, for a busy machine."""
    runs = [fresh("-m", "seqwm", "--help") for _ in range(3)]
    assert all(done.returncode == 0 for _, done in runs)
    assert min(seconds for seconds, _ in runs) < 0.5
    heavy = ("torch", "transformers", "datasets", "minari", "diffusers", "matplotlib", "accelerate")
    code = f"import seqwm, sys; print(*(m for m in {heavy} if m in sys.modules))"
    runs = [fresh("-c", code) for _ in range(3)]
    assert {done.stdout.strip() for _, done in runs} == {""}
    assert min(seconds for seconds, _ in runs) < 1.0


def test_training_speaks_at_once_and_shows_a_figure_soon():
    """Something on the screen within 2 seconds and a metric within 10, on a busy machine three times that."""
    command = [sys.executable, "-m", "seqwm", "train", "quickstart", "--out", "run"]
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        first_line = time.perf_counter() - began
        assert any("loss" in line for line in process.stdout)
        first_metric = time.perf_counter() - began
        process.terminate()
        process.stdout.read()
    assert process.returncode == 128 + 15
    assert first_line < 6
    assert first_metric < 30
