from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

import seqwm
from seqwm.core import provenance as module
from seqwm.core.provenance import provenance
from seqwm.core.shipped import shipped_folder


def test_a_figure_says_what_it_was_measured_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/seqwm", "train", "a recipe.yaml"])
    found = provenance()
    assert json.loads(json.dumps(found)) == found
    assert found["command"] == "seqwm train 'a recipe.yaml'"
    assert found["versions"]["seqwm"] == seqwm.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == torch.get_num_threads()


def test_the_commit_is_that_of_the_checkout_and_none_elsewhere(tmp_path, monkeypatch):
    if not (shipped_folder() / ".git").exists():
        pytest.skip("not a git checkout")
    git = ["git", "-C", str(shipped_folder()), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"[0-9a-f]{40}\+?", provenance()["commit"])
    assert provenance()["commit"].rstrip("+") == head.stdout.strip()
    monkeypatch.setattr(module, "shipped_folder", lambda: tmp_path)
    assert provenance()["commit"] is None
