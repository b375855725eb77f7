"""What the README and the guide for contributors tell people to type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from seqwm.cli import _parser
from seqwm.core.shipped import shipped_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "CONTRIBUTING.md")


def blocks(text):
    """(info string, content) of each fenced block."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["main-job", "tests"])
def test_the_two_commands_stand_there_once_in_one_line_each(name):
    found = [content.strip() for info, content in blocks(README) if info.split()[-1:] == [name]]
    assert len(found) == 1
    assert "\n" not in found[0]
    assert found[0].startswith("pip install -e ")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_named_is_one(page):
    text = (ROOT / page).read_text()
    lines = [line for info, content in blocks(text) if info.startswith("bash") for line in content.splitlines()]
    lines += [code for code in re.findall(r"`(seqwm [^`]+)`", text) if "--help" not in code]
    commands = [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("seqwm ")]
    for command in commands:
        assert _parser().parse_args(shlex.split(command, comments=True)[1:]).run
    if page == "README.md":
        assert commands


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_is_there(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"\]\(([^)#:]+)\)", text)) | set(
        re.findall(r"\b(?:recipes|tests|model_cards|datasets|seqwm)/[\w./-]*\w\.\w+", text)
    )
    assert named
    for name in (name for name in named if "NAME" not in name):
        assert (ROOT / name).exists(), name


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """As it stands, but for the data set that is not on this machine and the length of the training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQWM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipes").symlink_to(shipped_folder() / "recipes")
    (code,) = (content for info, content in blocks(README) if info.startswith("python"))
    for written, here in (
        ('"minari:mujoco/hopper/medium-v0"', repr(str(shipped_folder() / "datasets" / "cartpole"))),
        ('["train.steps=2000"]', '["train.steps=2", "evaluate.episodes=1", "train.track=[]"]'),
        ("episodes=20", "episodes=2"),
    ):
        assert written in code
        code = code.replace(written, here)
    exec(compile(code, "README.md", "exec"), {})
    assert "500" in capsys.readouterr().out
