"""Everything that can be said about logged data before anyone learns from it: what `seqwm data validate` runs."""

from __future__ import annotations

from seqwm.data.episode_check import check_episode

__all__ = ["check_episode"]
