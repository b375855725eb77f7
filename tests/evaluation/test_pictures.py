from __future__ import annotations

import av
import gymnasium
import numpy as np
import pytest

from seqwm.control.policies import RandomPolicy
from seqwm.control.rollout import Outcome
from seqwm.evaluation.evaluate import Evaluation, evaluate
from seqwm.evaluation.figures import draw_curve
from seqwm.evaluation.replay import write_replay
from tests.fakes import environments

DATA = np.random.default_rng(0).normal(300.0, 100.0, 200)


def evaluation(*targets: float | None, episodes: int = 5) -> Evaluation:
    generator = np.random.default_rng(0)
    outcomes = [Outcome(seed, float(generator.normal(200.0, 30.0)), 10, True, False) for seed in range(episodes)]
    return Evaluation("CartPole-v1", tuple((t, one) for t in targets for one in outcomes), {})


@pytest.mark.parametrize("targets", [(100.0, 300.0, 500.0), (100.0,), (None,)])
@pytest.mark.parametrize("data", [DATA, None])
@pytest.mark.parametrize("episodes", [1, 5])
def test_a_curve_is_a_picture_with_something_on_it(tmp_path, targets, data, episodes) -> None:
    from matplotlib.image import imread

    path = draw_curve(evaluation(*targets, episodes=episodes), tmp_path / "curve.png", data)
    pixels = imread(path)
    assert pixels.shape[0] > 400
    blue = (pixels[..., 2] - pixels[..., 0]) > 0.2
    assert blue.sum() > 50
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]


def test_the_data_stands_beneath_the_curve_along_the_same_axis(tmp_path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (drawn.append(figure), path.touch()))
    draw_curve(evaluation(100.0, 300.0), tmp_path / "curve.png", DATA)
    above, beneath = drawn[0].axes
    assert above.get_xlim() == beneath.get_xlim()
    assert sum(bar.get_height() for bar in beneath.patches) == len(DATA)


def test_a_replay_shows_the_episode_that_was_measured(tmp_path) -> None:
    policy = RandomPolicy(gymnasium.make("CartPole-v1").action_space, seed=0)
    [(_, outcome)] = evaluate(policy, "CartPole-v1", episodes=1, seed=3, progress=False).records
    path = write_replay(policy, "CartPole-v1", None, 3, tmp_path / "replay.mp4")
    assert path == tmp_path / "replay.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 50)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == outcome.length + 1
    assert frames[0].shape == (400, 600, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["replay.mp4"]


def test_an_environment_without_pictures_gives_a_warning_and_no_replay(tmp_path) -> None:
    policy = RandomPolicy(environments.Countdown.action_space, seed=0)
    with pytest.warns(UserWarning, match="Countdown-v0: no replay, for it cannot be rendered here"):
        assert write_replay(policy, "seqwm-tests/Countdown-v0", None, 0, tmp_path / "replay.mp4") is None
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_cannot_render_gives_a_warning_and_no_replay(tmp_path, monkeypatch) -> None:
    from gymnasium.envs.classic_control import CartPoleEnv

    def fail(self):
        raise RuntimeError("no display")

    monkeypatch.setattr(CartPoleEnv, "render", fail)
    policy = RandomPolicy(gymnasium.make("CartPole-v1").action_space, seed=0)
    with pytest.warns(UserWarning, match=r"CartPole-v1: no replay.*RuntimeError: no display"):
        assert write_replay(policy, "CartPole-v1", None, 0, tmp_path / "replay.mp4") is None
    assert list(tmp_path.iterdir()) == []
