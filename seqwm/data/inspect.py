"""A first look at a store: what it holds, what returns it shows, and what to ask a return-conditioned policy for."""

from __future__ import annotations

from typing import Any

import numpy as np

from seqwm.core.spaces import space_to_json
from seqwm.core.tree import flatten
from seqwm.data.store import TrajectoryStore

_BARS = " ▁▂▃▄▅▆▇█"


def inspect(store: TrajectoryStore) -> dict[str, Any]:
    """Figures of a store as JSON: sizes, spaces, ends, lengths, returns, columns that never change, suggestions."""
    statistics = store.statistics
    ends = {
        "terminated": int(store.terminated.sum()),
        "truncated": int(store.truncated.sum()),
        "open": int((~store.terminated & ~store.truncated).sum()),
    }
    report: dict[str, Any] = {
        "source": str(store.provenance.get("source") or store.path or "a store in memory"),
        "environment": store.provenance.get("environment"),
        "episodes": len(store),
        "transitions": store.rows,
        "bytes": sum(len(part) for part in store.parts) * store.layout.row_bytes,
        "observation_space": space_to_json(store.spaces.observation),
        "action_space": space_to_json(store.spaces.action) if store.spaces.action is not None else None,
        "ends": ends,
        "lengths": _spread(store.lengths.astype(np.float64)),
        "constant_columns": _constant(store),
    }
    if store.has_rewards:
        returns = store.returns
        best = np.argsort(-returns)[: max(1, len(store) // 10)]
        report["returns"] = _spread(returns)
        report["suggestions"] = {
            "return_scale": float(f"{np.abs(returns).max():.3g}"),
            "targets": sorted({float(f"{q:.3g}") for q in np.quantile(returns, [0.5, 0.75, 0.9, 1.0])}),
            "top_tenth_mean_return": float(returns[best].mean()),
        }
    if statistics.action_low is not None:
        low, high = flatten(statistics.action_low), flatten(statistics.action_high)
        report["action_range"] = {k or "action": [low[k].tolist(), high[k].tolist()] for k in low}
    return report


def as_text(report: dict[str, Any]) -> str:
    """The report for a person to read."""
    lines = [
        f"{report['source']}",
        f"  environment    {report['environment'] or 'not named'}",
        f"  size           {report['transitions']:,} transitions in {report['episodes']:,} episodes, "
        f"{report['bytes'] / 1e6:.1f} MB",
        f"  observation    {_space(report['observation_space'])}",
        f"  action         {_space(report['action_space']) if report['action_space'] else 'not logged'}",
        "  ends           " + ", ".join(f"{count:,} {name}" for name, count in report["ends"].items()),
        f"  lengths        {_spread_text(report['lengths'])}",
    ]
    if "returns" in report:
        suggestions = report["suggestions"]
        lines += [
            f"  returns        {_spread_text(report['returns'])}",
            f"  best tenth     mean return {suggestions['top_tenth_mean_return']:.4g}",
            f"  try targets    {', '.join(f'{t:g}' for t in suggestions['targets'])}; return_scale "
            f"{suggestions['return_scale']:g}",
        ]
    else:
        lines.append("  returns        rewards were not logged: a world model or latent actions can learn from this")
    if report["constant_columns"]:
        lines.append(f"  never changes  {', '.join(report['constant_columns'])}")
    return "\n".join(lines)


def _spread(values: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(values, bins=min(24, max(1, len(values))))
    quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {
        "mean": float(values.mean()),
        **dict(zip(("min", "q25", "median", "q75", "max"), quartiles, strict=True)),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _spread_text(spread: dict[str, Any]) -> str:
    counts = spread["histogram"]["counts"]
    top = max(counts) or 1
    bars = "".join(_BARS[-(-8 * count // top)] for count in counts)
    return (
        f"mean {spread['mean']:.4g}; min {spread['min']:.4g}, quartiles {spread['q25']:.4g} {spread['median']:.4g} "
        f"{spread['q75']:.4g}, max {spread['max']:.4g}  |{bars}|"
    )


def _space(description: dict[str, Any]) -> str:
    if description["type"] == "Dict":
        return "{" + ", ".join(f"{name}: {_space(sub)}" for name, sub in description["subspaces"].items()) + "}"
    if description["type"] == "Discrete":
        return f"Discrete({description['n']})"
    if description["type"] == "MultiDiscrete":
        return f"MultiDiscrete({description['nvec']})"
    return f"Box{tuple(description['shape'])} {description['dtype']}"


def _constant(store: TrajectoryStore) -> list[str]:
    names = []
    for kind in ("observation", "action"):
        low, high = getattr(store.statistics, f"{kind}_low"), getattr(store.statistics, f"{kind}_high")
        if low is None:
            continue
        for path, leaf in flatten(low).items():
            same = np.ravel(leaf == flatten(high)[path])
            name = f"{kind}/{path}" if path else kind
            names += [f"{name}[{index}]" if same.size > 1 else name for index in np.flatnonzero(same)]
    return names
