"""The card of a published data set: README.md with what a reader asks first, and histograms.png of returns and lengths.

Text comes from `model_cards/dataset.md`; figures from `seqwm.data.inspect`.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from gymnasium import Space
from numpy.typing import NDArray

from seqwm.core.files import write_atomically
from seqwm.core.shipped import shipped_folder
from seqwm.data.inspect import inspect
from seqwm.data.store import TrajectoryStore

_BLUE = "#1f5fa8"
_MEANINGS = {
    "action": "the action chosen from this row's observation",
    "next.reward": "the reward that followed the action",
    "next.done": "whether the episode ended with the action, for either reason",
    "next.terminated": "the task ended: the value of what follows is zero",
    "next.truncated": "the log was cut, by a time limit for example",
    "episode_index": "number of the episode, from 0",
    "frame_index": "step within the episode, from 0",
    "timestamp": "seconds since the episode began",
    "is_final_observation": "the row holds only the observation after the last action; its action and reward are zero "
    "and mean nothing",
    "episode_meta": "JSON: what else was logged of the episode (seed, behaviour policy, ...)",
}


def write_dataset_card(store: TrajectoryStore, repository: str, folder: Path) -> None:
    """Write README.md and histograms.png into `folder`, whose 'data' holds the store as Parquet."""
    report = inspect(store)
    schema = pq.read_schema(next((folder / "data").glob("*.parquet")))
    environment = report["environment"]
    licence = store.provenance.get("licence") or store.provenance.get("license")
    spreads = [("return", report["returns"])] if "returns" in report else []
    spreads += [("length", report["lengths"])]
    body = Template((shipped_folder() / "model_cards" / "dataset.md").read_text()).substitute(
        title=f"{repository.partition('/')[2]}: {environment or 'trajectories'}",
        transitions=f"{report['transitions']:,}",
        episodes=f"{report['episodes']:,}",
        environment=f"`{environment}`" if environment else "an environment that the log does not name",
        repository=repository,
        figure_text="histograms of " + " and ".join(f"episode {name}s" for name, _ in spreads),
        spreads="\n".join(_spread_row(name, spread) for name, spread in spreads),
        source=_source(store),
        observation=_space(store.spaces.observation),
        action=_space(store.spaces.action) if store.spaces.action is not None else "not logged",
        ends=", ".join(f"{count:,} {name}" for name, count in report["ends"].items()),
        fingerprint=store.fingerprint,
        columns=_columns(schema.names, [str(field.type) for field in schema]),
        limits=_limits(report),
        licence=f"{licence}." if licence else "That of the source; look there before you pass it on.",
    )
    _draw(folder / "histograms.png", store.returns if store.has_rewards else None, store.lengths)
    text = f"---\n{yaml.safe_dump(_metadata(store, report, licence), sort_keys=False)}---\n{body}"
    write_atomically(folder / "README.md", text.encode())


def _metadata(store: TrajectoryStore, report: dict[str, Any], licence: Any) -> dict[str, Any]:
    environment = report["environment"]
    metadata: dict[str, Any] = {"license": str(licence)} if licence else {}
    return metadata | {
        "task_categories": ["reinforcement-learning"],
        "tags": [*([environment] if environment else []), "offline-reinforcement-learning", "trajectories", "seqwm"],
        "size_categories": [_size_category(report["transitions"])],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    }


def _size_category(rows: int) -> str:
    """The Hub's own classes: n<1K, 1K<n<10K, ..."""
    names = {3: "1K", 4: "10K", 5: "100K", 6: "1M", 7: "10M", 8: "100M", 9: "1B", 10: "10B", 11: "100B", 12: "1T"}
    power = next((power for power in names if rows < 10**power), None)
    if power is None:
        return "n>1T"
    return "n<1K" if power == 3 else f"{names[power - 1]}<n<{names[power]}"


def _spread_row(name: str, spread: dict[str, Any]) -> str:
    quartiles = ", ".join(f"{spread[key]:.5g}" for key in ("q25", "median", "q75"))
    return f"| {name} | {spread['mean']:.5g} | {spread['min']:.5g} | {quartiles} | {spread['max']:.5g} |"


def _space(space: Space[Any]) -> str:
    return f"`{' '.join(str(space).split())}`"


def _source(store: TrajectoryStore) -> str:
    known = store.provenance
    revision = f" at revision `{known['revision']}`" if known.get("revision") else ""
    origin = f"`{known.get('source', 'collected')}`{revision}"
    return origin + (f", exported from `{known['exported_from']}`" if known.get("exported_from") else "")


def _columns(names: list[str], types: list[str]) -> str:
    lines = ["| column | type | what it holds |", "| --- | --- | --- |"]
    for name, kind in zip(names, types, strict=True):
        shown = "PNG image" if kind.startswith("struct<bytes") else re.sub(r"fixed_size_list<(?:\w+: )?", "", kind)
        shown = shown.replace(">[", "[")
        meaning = _MEANINGS.get(name) or _MEANINGS.get(name.split(".")[0]) or "the observation before the action"
        lines.append(f"| `{name}` | `{shown}` | {meaning} |")
    return "\n".join(lines)


def _limits(report: dict[str, Any]) -> str:
    lines = []
    if report["constant_columns"]:
        lines.append(f"- Entries that never change: {', '.join(f'`{name}`' for name in report['constant_columns'])}.")
    if report["ends"]["truncated"]:
        lines.append(
            f"- {report['ends']['truncated']:,} episodes were cut before the task ended; their returns count what came "
            "until then."
        )
    if report["ends"]["open"]:
        lines.append(f"- {report['ends']['open']:,} episodes have no logged end at all.")
    if "returns" not in report:
        lines.append("- Rewards were not logged: it serves world models and imitation, not return-conditioning.")
    return "\n".join(lines) or "- Whoever made the log chose what is in it; states that it never came to are not there."


def _draw(path: Path, returns: NDArray[np.float64] | None, lengths: NDArray[np.int64]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [("length in steps", lengths)] if returns is None else [("return", returns), ("length in steps", lengths)]
    figure = Figure(figsize=(4.2 * len(shown), 2.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(1, len(shown), sharey=False))
    for axes, (name, values) in zip(panels, shown, strict=True):
        axes.hist(values, bins=50, color=_BLUE)
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("episodes")
    figure.savefig(path, format="png", metadata={"Software": None})
