from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from seqwm.evaluation.prediction import Rollouts
from seqwm.evaluation.rollout_figure import draw_rollout


@pytest.fixture
def drawn(monkeypatch):
    """The panels of the last figure: their titles and lines."""
    from matplotlib.figure import Figure

    panels = []
    original = Figure.savefig

    def savefig(self, *arguments, **keywords):
        panels[:] = [axes for axes in self.axes if axes.get_visible()]
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return panels


def rollouts(columns: int) -> Rollouts:
    generator = np.random.default_rng(0)
    place, gear = generator.standard_normal((3, 9, columns)), generator.integers(0, 4, (3, 9))
    there = np.arange(9) < np.array([4, 7, 1])[:, None]
    before = {"place": place[:, 0] - 1, "gear": gear[:, 0]}
    happened, predicted = {"place": place, "gear": gear}, {"place": place + 1, "gear": gear}
    return Rollouts(before, predicted, happened, np.zeros((3, 9), np.float32), None, there)


def test_the_log_that_goes_on_longest_is_drawn_number_by_number(tmp_path, drawn) -> None:
    given = rollouts(2)
    assert draw_rollout(given, tmp_path / "rollout.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in drawn] == ["place[0]", "place[1]", "gear"]
    real, predicted = (line.get_ydata() for line in drawn[1].lines)
    expected = np.concatenate([[given.before["place"][1, 1]], given.happened["place"][1, :7, 1]])
    np.testing.assert_array_equal(real, expected)
    np.testing.assert_allclose(predicted, expected + np.append(0, np.ones(7)))


def test_of_many_numbers_the_first_twelve_are_drawn(tmp_path, drawn) -> None:
    draw_rollout(rollouts(20), tmp_path / "rollout.png")
    assert len(drawn) == 12


def test_a_second_world_is_drawn_beside_the_first(tmp_path, drawn) -> None:
    given = rollouts(2)
    other = dataclasses.replace(given, predicted={"place": given.happened["place"] + 2, "gear": given.happened["gear"]})
    draw_rollout(given, tmp_path / "rollout.png", ("PETS", other))
    real, first, second = drawn[0].lines
    np.testing.assert_allclose(second.get_ydata()[1:], real.get_ydata()[1:] + 2)
    np.testing.assert_allclose(first.get_ydata()[1:], real.get_ydata()[1:] + 1)
    assert [text.get_text() for text in drawn[0].get_legend().get_texts()] == ["reality", "the model", "PETS"]
