from __future__ import annotations

import dataclasses

import numpy as np
import torch
from gymnasium import spaces

from seqwm.control.experience import Experience, ExperienceTable, draw_mixed, lived
from seqwm.core.types import Episode
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.ensemble_world import EnsembleWorld


def numbered(first: int, last: int) -> torch.Tensor:
    """Rows whose reward is their number."""
    count = last - first
    zeros = torch.zeros(count, 2)
    return Experience(zeros, zeros[:, :1], torch.arange(first, last).float(), zeros, torch.zeros(count)).packed()


def table(first: int, last: int) -> ExperienceTable:
    made = ExperienceTable(2, 1)
    made.append(numbered(first, last))
    return made


def test_rows_are_packed_and_unpacked_to_the_same():
    rows = Experience(torch.rand(4, 2), torch.rand(4, 1), torch.rand(4), torch.rand(4, 2), torch.tensor([0.0, 1, 0, 1]))
    again = Experience.unpacked(rows.packed(), 2)
    for field in dataclasses.fields(rows):
        assert torch.equal(getattr(again, field.name), getattr(rows, field.name))


def test_a_table_keeps_every_row_as_it_grows_and_forgets_the_oldest():
    made = ExperienceTable(2, 1)
    for first in range(0, 50, 5):
        made.append(numbered(first, first + 5))
    assert Experience.unpacked(made.rows, 2).reward.tolist() == list(range(50))
    made.keep(7)
    made.append(numbered(50, 52))
    assert Experience.unpacked(made.rows, 2).reward.tolist() == [43, 44, 45, 46, 47, 48, 49, 50, 51]
    made.keep(100)
    assert len(made) == 9


def test_a_mixed_batch_has_exactly_its_share_of_real_rows_and_only_those_before_any_is_imagined():
    real, imagined, generator = table(0, 100), table(1000, 1300), torch.Generator().manual_seed(0)
    for share, expected in ((0.0, 0), (0.05, 13), (0.5, 128), (1.0, 256)):
        drawn = draw_mixed(real, imagined, 256, share, generator)
        assert int((drawn.reward < 1000).sum()) == expected
        assert len(drawn.reward) == 256
    assert float(draw_mixed(real, ExperienceTable(2, 1), 256, 0.0, generator).reward.max()) < 100
    counts = torch.bincount(draw_mixed(real, imagined, 100_000, 1.0, generator).reward.long(), minlength=100)
    assert float((counts - 1000).abs().max()) < 6 * 1000**0.5


def test_the_rows_of_an_episode_have_actions_within_one_and_end_where_the_task_did():
    seen = np.arange(8, dtype=np.float32).reshape(4, 2)
    acted, rewards = np.array([[-3.0], [0.0], [3.0]], np.float32), np.array([1, 2, 3], np.float32)
    box = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-3.0, 3.0, (1,), np.float32)
    world = EnsembleWorld(EnsembleOptions(members=1, elites=1, layers=1, width=4), "TS-1", *box)
    for terminated in (True, False):
        rows = Experience.unpacked(lived(world, Episode(seen, acted, rewards, terminated, not terminated)), 2)
        assert rows.observation.tolist() == seen[:-1].tolist()
        assert rows.following.tolist() == seen[1:].tolist()
        assert rows.action[:, 0].tolist() == [-1.0, 0.0, 1.0]
        assert rows.reward.tolist() == [1.0, 2.0, 3.0]
        assert rows.terminated.tolist() == [0.0, 0.0, float(terminated)]
    tail = Episode(seen[:-1], acted, rewards, False, False, final_observation=False)
    assert Experience.unpacked(lived(world, tail), 2).following.tolist() == seen[1:3].tolist()
