from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from seqwm.core.errors import CheckpointError
from seqwm.evaluation.evaluate import Evaluation
from seqwm.hub.card import card, hub_dataset, method_section, write_card
from seqwm.methods import methods


@pytest.fixture
def changed(run, tmp_path):
    """A copy of the run to change, and what changes a JSON or YAML file in it."""
    folder = shutil.copytree(run, tmp_path / "run")

    def change(name, edit):
        content = yaml.safe_load((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))

    return folder, change


def test_a_run_leaves_a_card_that_the_hubs_own_client_reads(run):
    parsed = ModelCard((run / "README.md").read_text())
    assert parsed.data.library_name == "seqwm"
    assert parsed.data.pipeline_tag == "reinforcement-learning"
    assert parsed.data.license == "apache-2.0"
    assert {"CartPole-v1", "reinforcement-learning", "deep-reinforcement-learning", "decision-transformer"} <= set(
        parsed.data.tags
    )
    results = {one.metric_type: one for one in parsed.data.eval_results}
    evaluation = Evaluation.from_json(json.loads((run / "evaluation.json").read_text()))
    best = evaluation.summary(300.0)
    assert results["mean_reward"].metric_value == f"{best.mean:.2f} +/- {best.std:.2f}"
    assert {one.dataset_type for one in results.values()} == {"CartPole-v1"}
    assert {one.task_type for one in results.values()} == {"reinforcement-learning"}
    assert results["mean_return"].metric_value == pytest.approx(best.mean, abs=1e-4)
    assert results["normalized_score"].metric_value == pytest.approx(best.score, abs=1e-4)
    assert results["target_return"].metric_value == 300
    assert results["episodes"].metric_value == 2


def test_a_card_tells_what_a_reader_asks(run):
    text = card(run, "user/dt", exported=True)
    record = json.loads((run / "run.json").read_text())
    evaluation = Evaluation.from_json(json.loads((run / "evaluation.json").read_text()))
    assert "# Decision Transformer for `CartPole-v1`" in text
    assert "48,362 transitions in 718 episodes; returns 8 to 500" in text
    assert record["data"]["fingerprint"][:16] in text
    for summary in evaluation.summaries:
        low, high = summary.interval
        assert f"| {summary.target:g} | {summary.mean:.1f} | [{low:.1f}, {high:.1f}] |" in text
    for part in (
        "100 (R - 22.38) / (500 - 22.38), reference `seqwm/CartPole-v1`",
        "One trained model (seed 0), 2 episodes for each target",
        "environment seeds 0 to 1",
        "Calibration error",
        "60 updates of 16 windows in",
        "CPU cores",
        f"`{record['command']}`",
        "](curve.png)",
        "shows one episode at target 300",
        'seqwm.load_model("user/dt")',
        "targets=[300]",
        'AutoModel.from_pretrained("user/dt", trust_remote_code=True)',
        'DecisionTransformerModel.from_pretrained("user/dt", subfolder="transformers")',
        "seqwm train recipe.yaml",
        "No return beyond 500",
        "Apache-2.0",
        "@inproceedings{chen2021decision",
    ):
        assert part in text, part
    assert re.findall(r"\$\w+", text) == []


def test_the_command_that_a_card_gives_makes_the_same_recipe(run):
    from seqwm.recipe import read_recipe
    from tests.hub.conftest import small_recipe

    assert read_recipe(run / "recipe.yaml") == small_recipe("decision_transformer")


def test_a_policy_without_targets_has_no_column_for_them(runs):
    text = card(runs["behavior_cloning"])
    assert "| mean | 95 % interval |" in text
    assert "target return |" not in text
    assert "model.policy()" in text
    assert "DecisionTransformerModel" not in text


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:user/log@v1", "user/log"),
        ("hf:user/logs/hopper", "user/logs"),
        ("lerobot:user/log", "user/log"),
        ("minari:hopper/medium-v0", None),
        ("datasets/cartpole", None),
        ("d4rl:a/b.hdf5", None),
    ],
)
def test_only_what_the_hub_holds_is_named_as_its_data_set(source, name):
    assert hub_dataset(source) == name


def test_data_of_the_hub_is_linked_at_its_revision(changed):
    folder, change = changed
    change(
        "run.json",
        lambda record: record["data"].update(
            source="hf:user/log", provenance={"revision": "abc123", "licence": "mit", "exported_from": "minari:a/b-v0"}
        ),
    )
    text = write_card(folder)
    assert text == (folder / "README.md").read_text()
    assert ModelCard(text).data.datasets == ["user/log"]
    assert "](https://huggingface.co/datasets/user/log), revision `abc123`, exported from `minari:a/b-v0`" in text
    assert "The data is under mit." in text


def test_a_run_that_was_not_played_says_so_and_claims_no_result(changed):
    folder, _ = changed
    (folder / "evaluation.json").unlink()
    text = card(folder)
    assert ModelCard(text).data.eval_results is None
    assert "It was not played" in text


def test_a_card_of_hours_on_an_accelerator_says_so(changed):
    folder, change = changed
    change("run.json", lambda record: record.update(seconds=9000.0) or record["machine"].update(accelerator="H200"))
    assert "in 2.5 hours on H200" in card(folder)


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml"])
def test_a_folder_that_is_no_finished_run_is_refused_with_the_mend(changed, name):
    folder, _ = changed
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*finished run"):
        card(folder)


def test_a_run_that_has_not_finished_is_refused(changed):
    folder, change = changed
    change("run.json", lambda record: record.pop("seconds"))
    with pytest.raises(CheckpointError, match="--resume"):
        card(folder)


@pytest.mark.parametrize("method", methods())
def test_every_method_says_what_it_is(method):
    section = method_section(method)
    assert len(section.about) > 40
    assert section.title


def test_a_method_without_a_section_is_known_by_its_modules_first_words(monkeypatch, tmp_path):
    import seqwm.methods

    (tmp_path / "new_method.py").write_text('"""New method: better than\nthe others.\n\nDetails."""\n')
    monkeypatch.setattr(seqwm.methods, "__path__", [*seqwm.methods.__path__, str(tmp_path)])
    section = method_section("new_method")
    assert (section.title, section.about) == ("New method", "New method: better than the others.")
    assert section.tags == ("new-method",)
