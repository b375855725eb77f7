from __future__ import annotations

from seqwm.core import shipped


def test_a_path_is_sought_in_the_working_directory_and_then_among_what_is_shipped(tmp_path, monkeypatch):
    share, here = tmp_path / "share", tmp_path / "here"
    (share / "datasets" / "cartpole").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(shipped, "shipped_folder", lambda: share)
    assert shipped.find("datasets/cartpole") == share / "datasets/cartpole"
    assert shipped.locate_source("datasets/cartpole") == str(share / "datasets/cartpole")
    assert shipped.locate_source("minari:datasets/cartpole") == f"minari:{share}/datasets/cartpole"
    assert shipped.locate_source("minari:mujoco/hopper/medium-v0") == "minari:mujoco/hopper/medium-v0"
    assert shipped.locate_source("hf:user/name@main") == "hf:user/name@main"
    (here / "datasets" / "cartpole").mkdir(parents=True)
    assert shipped.locate_source("datasets/cartpole") == "datasets/cartpole"
    assert shipped.find("datasets/none") is None


def test_the_shipped_folder_of_a_checkout_holds_the_project():
    assert (shipped.shipped_folder() / "pyproject.toml").is_file()
