from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from seqwm.recipe import parse_recipe
from seqwm.study import run_study
from seqwm.study_curves import curves_table, draw_curves, lowest_after, reached

CURVE = [[100, 1.0, 20.0], [200, 2.0, 480.0], [300, 3.0, 150.0], [400, 4.0, 500.0]]
STUDY = """\
title: Learning
methods:
  Dyna: {recipe: maze}
seeds: [0, 1]
thresholds: [0.5, 1]
"""


def of(method, curve, seed=0):
    return {"dataset": "", "method": method, "seed": seed, "curve": curve}


def test_a_threshold_is_reached_at_its_first_measurement_and_what_is_lost_again_is_seen():
    assert reached(CURVE, 475) == [200, 2.0, 480.0]
    assert reached(CURVE, 500) == [400, 4.0, 500.0]
    assert reached(CURVE, 501) is None
    assert lowest_after(CURVE, 475) == 150
    assert lowest_after(CURVE, 501) is None


def test_seeds_that_never_get_there_count_as_later_than_all_that_do():
    late, never = [[900, 9.0, 475.0]], [[900, 9.0, 10.0]]
    lines = curves_table([of("A", CURVE), of("A", late), of("A", never), of("B", never)], [475]).splitlines()
    assert lines[0] == "| method | steps to 475 | seconds to 475 | lowest after 475 | steps in all | seeds |"
    assert lines[2] == "| A | 900 [200, 900] (2 of 3) | 9 [2, 9] (2 of 3) | 150 | 900 | 3 |"
    assert lines[3] == "| B | never (0 of 1) | never (0 of 1) | - | 900 | 1 |"
    two = curves_table([of("A", CURVE), of("A", never), of("A", never)], [475])
    assert "| above 200 [200, 200] (1 of 3) |" in two


def test_a_figure_is_drawn_of_curves_of_any_length(tmp_path):
    draw_curves("T", [of("A", CURVE), of("A", CURVE[:2]), of("B", CURVE[:1])], [475], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size[0] > 300


def test_a_study_of_runs_that_are_measured_while_they_learn_says_how_fast_they_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    maze = {
        "method": "dyna_q",
        "collect": {"environment": "seqwm/DynaMaze-v0", "prefill": 100},
        "train": {"steps": 600, "track": []},
        "model": {"planning": 50},
        "evaluate": {"episodes": 1, "every": 200, "replay": False},
    }
    parse_recipe(json.dumps(maze), "maze")
    Path("recipes/maze.yaml").write_text(json.dumps(maze))
    Path("study").mkdir()
    Path("study/study.yaml").write_text(STUDY)
    text = run_study("study/study.yaml").read_text()
    assert "| method | steps to 0.5 | steps to 1 | seconds to 1 | lowest after 1 | steps in all | seeds |" in text
    records = json.loads(Path("study/results.json").read_text())["records"]
    assert [[point[0] for point in record["curve"]] for record in records] == [[300, 500, 700]] * 2
    assert Path("study/curves.png").is_file()
