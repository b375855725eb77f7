from __future__ import annotations

import pytest

from tests.hub.loopback import Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that the clients of this process talk to; `hub.slept` lists the seconds that they waited."""
    with Hub() as running:
        running.connect(monkeypatch, tmp_path / "huggingface")
        yield running
