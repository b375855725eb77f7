"""The model card: a README.md made from what a run left behind, for a reader who has never heard of seqwm.

Text comes from `model_cards/template.md` and `model_cards/methods/NAME.md`, figures from recipe.yaml, run.json and
evaluation.json. The metadata is what the Hub reads: library, task, tags, data sets, and results as a model-index with
`mean_reward` as "mean +/- std", by which reinforcement learning is ranked there, beside numbers of their own. The Hub's
`.eval_results/` is for data sets that are registered there as benchmarks; no environment is, so nothing is written.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from seqwm.core.files import write_atomically
from seqwm.core.shipped import shipped_folder
from seqwm.evaluation.evaluate import Evaluation, Summary
from seqwm.hub.dream_section import dream_section
from seqwm.hub.finished_run import FinishedRun, read_finished

PLACEHOLDER = "USER/NAME"
"""Stands for the repository in the card of a run that is not published."""

_AS_TRANSFORMERS = """
The same network as `transformers`' own class, with no code to trust. It takes standardised observations and scaled
returns; `state_mean`, `state_std`, `return_scale`, `action_centre` and `action_scale` are in its config:

```python
from transformers import DecisionTransformerModel

model = DecisionTransformerModel.from_pretrained("$repository", subfolder="transformers")
```
"""
_TAGS = ("reinforcement-learning", "deep-reinforcement-learning", "offline-reinforcement-learning")


@dataclass(frozen=True, slots=True)
class Section:
    """What a card says of a method; `model_cards/methods/NAME.md`."""

    title: str
    about: str
    limits: str = ""
    citation: str = ""
    tags: tuple[str, ...] = ()


def write_card(run: Path) -> str:
    """Write RUN/README.md and return its text; CheckpointError where `run` is no finished run."""
    text = card(run)
    write_atomically(run / "README.md", text.encode())
    return text


def card(run: Path, repository: str = PLACEHOLDER, *, exported: bool = False) -> str:
    """The card of a run.

    Args:
        run: its folder.
        repository: where it is published.
        exported: whether `transformers/` beside it holds the network as a class of transformers.

    Raises:
        CheckpointError: naming the file that is missing or cannot be read.
    """
    facts = read_finished(run)
    section = method_section(facts.recipe["method"])
    metadata = yaml.safe_dump(_metadata(facts, section, repository), sort_keys=False, allow_unicode=True)
    use = _text("use_world" if facts.world else "use_policy")
    targets = [_plain(facts.headline.target)] if facts.headline and facts.headline.target is not None else []
    body = _text("template").substitute(
        title=section.title,
        about=section.about,
        repository=repository,
        environment=f"`{facts.environment}`" if facts.environment else "no environment (trained, not played)",
        use=use.substitute(
            repository=repository,
            environment_id=facts.environment or "ENVIRONMENT-v0",
            targets_argument=f", targets={targets}" if targets else "",
            policy_argument=f"target_returns={targets}" if targets else "",
            as_transformers=Template(_AS_TRANSFORMERS).substitute(repository=repository) if exported else "",
        ).rstrip()
        + "\n",
        data=_data(facts),
        size=f"{facts.parameters:,} parameters, float32, safetensors; normalisation is part of the weights",
        training=_training(facts),
        command=f"`{facts.record['command']}`, {_commit(facts)}, seed {facts.record['seed']}",
        results="\n\n".join(part for part in (_results(facts), dream_section(run).rstrip()) if part),
        versions=", ".join(f"{name} {version}" for name, version in facts.record["versions"].items()),
        limits="\n".join(part for part in (section.limits, _limits(facts)) if part),
        licence=_licence(facts),
        citation=f"```bibtex\n{section.citation.strip()}\n```" if section.citation else "See the method's file.",
    )
    return f"---\n{metadata}---\n{body}"


def method_section(method: str) -> Section:
    """What cards say of a method; the first paragraph of its module where it has no file."""
    file = shipped_folder() / "model_cards" / "methods" / f"{method}.md"
    if not file.is_file():
        title = method.replace("_", " ").capitalize()
        return Section(title, _first_paragraph(method) or title, tags=(method.replace("_", "-"),))
    _, head, body = file.read_text().split("---\n", 2)
    about, _, limits = body.partition("## Limits\n")
    fields = yaml.safe_load(head)
    return Section(fields["title"], about.strip(), limits.strip(), fields["citation"], tuple(fields["tags"]))


def hub_dataset(source: str) -> str | None:
    """The Hub's name for a source that it holds: 'user/name' of 'hf:user/name@revision'."""
    scheme, _, location = source.partition(":")
    location = location.partition("@")[0]
    remote = scheme == "hf" or (scheme == "lerobot" and not Path(location).exists())
    return "/".join(location.split("/")[:2]) if remote and "/" in location else None


def _text(name: str) -> Template:
    return Template((shipped_folder() / "model_cards" / f"{name}.md").read_text())


def _metadata(facts: FinishedRun, section: Section, repository: str) -> dict[str, Any]:
    environment, headline = facts.environment, facts.headline
    metadata: dict[str, Any] = {
        "library_name": "seqwm",
        "pipeline_tag": "reinforcement-learning",
        "license": "apache-2.0",
        "tags": [*([environment] if environment else []), *_TAGS, *section.tags, "seqwm"],
    }
    dataset = hub_dataset(facts.record["data"]["source"])
    if dataset:
        metadata["datasets"] = [dataset]
    if headline and environment:
        name = repository if repository != PLACEHOLDER else f"{facts.recipe['method']}-{environment}"
        task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
        result = {
            "task": task,
            "dataset": {"name": environment, "type": environment},
            "metrics": _metrics(facts, headline),
        }
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata


def _metrics(facts: FinishedRun, headline: Summary) -> list[dict[str, Any]]:
    assert facts.evaluation is not None
    values: dict[str, Any] = {
        "mean_reward": f"{headline.mean:.2f} +/- {headline.std:.2f}",
        "mean_return": round(headline.mean, 4),
        "median_return": round(headline.median, 4),
        "iqm_return": round(headline.iqm, 4),
        "episodes": headline.episodes,
    }
    if headline.interval:
        values |= {
            "mean_return_low": round(headline.interval[0], 4),
            "mean_return_high": round(headline.interval[1], 4),
        }
    if headline.score is not None:
        values["normalized_score"] = round(headline.score, 4)
    if headline.target is not None:
        values["target_return"] = headline.target
    return [{"type": name, "name": name, "value": value, "verified": False} for name, value in values.items()]


def _results(facts: FinishedRun) -> str:
    evaluation = facts.evaluation
    if evaluation is None:
        if facts.world:
            return "It has no policy, so nothing was played; `seqwm dream` puts it beside reality."
        return "It was not played: the data names no environment that could be built."
    asked = evaluation.targets != [None]
    columns = [*(["target return"] if asked else []), "mean", "95 % interval", "std", "median", "IQM", "min", "max"]
    columns += ["normalised score"] if evaluation.reference else []
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for one in evaluation.summaries:
        interval = f"[{one.interval[0]:.1f}, {one.interval[1]:.1f}]" if one.interval else "none"
        cells = [f"{one.target:g}"] if one.target is not None else []
        cells += [f"{one.mean:.1f}", interval]
        cells += [f"{value:.1f}" for value in (one.std, one.median, one.iqm, one.min, one.max)]
        cells += [f"{one.score:.1f}"] if one.score is not None else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _how_measured(facts, evaluation, asked)])


def _how_measured(facts: FinishedRun, evaluation: Evaluation, asked: bool) -> str:
    seeds = sorted({outcome.seed for _, outcome in evaluation.records})
    each = len(evaluation.records) // len(evaluation.targets)
    parts = [
        f"One trained model (seed {facts.record['seed']}), {each} episodes{' for each target' if asked else ''} in "
        f"`{evaluation.environment}`{_options(evaluation)} with environment seeds {seeds[0]} to {seeds[-1]}; returns "
        "are undiscounted, actions greedy. Intervals are percentile bootstraps of the mean over episodes: they say "
        "nothing of other training seeds. IQM is the mean of the middle half. Every episode is in `evaluation.json`."
    ]
    if evaluation.reference:
        pair = evaluation.reference
        parts.append(
            f"Normalised score: 100 (R - {pair.low:g}) / ({pair.high:g} - {pair.low:g}), reference `{pair.name}` "
            f"({pair.source})."
        )
    if evaluation.calibration_error is not None:
        parts.append(
            f"Calibration error, the mean distance of what was reached from what was asked for: "
            f"{evaluation.calibration_error:.1f}."
        )
    if "curve.png" in facts.pictures:
        parts.append("![What was achieved, and beneath it the returns in the data](curve.png)")
    if "replay.mp4" in facts.pictures and facts.headline:
        target = f" at target {facts.headline.target:g}" if facts.headline.target is not None else ""
        parts.append(f"[replay.mp4](replay.mp4) shows one episode{target}.")
    return "\n\n".join(parts)


def _options(evaluation: Evaluation) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in evaluation.options.items())
    return f" ({given})" if given else ""


def _data(facts: FinishedRun) -> str:
    data = facts.record["data"]
    known = data.get("provenance", {})
    repository = hub_dataset(data["source"])
    name = (
        f"[`{data['source']}`](https://huggingface.co/datasets/{repository})" if repository else f"`{data['source']}`"
    )
    origin = f", exported from `{known['exported_from']}`" if known.get("exported_from") else ""
    revision = f", revision `{known['revision']}`" if known.get("revision") else ""
    spread = data.get("returns")
    returns = f"; returns {spread[0]:.4g} to {spread[2]:.4g}, median {spread[1]:.4g}" if spread else ""
    size = f"{data['transitions']:,} transitions in {data['episodes']:,} episodes{returns}"
    streamed = (facts.recipe["data"] or {}).get("streaming")
    named = "read as a stream as far as training came, sha256 of its first part" if streamed else "content sha256"
    if "collected" in data:
        named = "with what it collected while it learned, content sha256"
    return f"{name}{revision}{origin}: {size}; {named} `{data.get('collected', data['fingerprint'])[:16]}`"


def _training(facts: FinishedRun) -> str:
    record, train = facts.record, facts.recipe["train"]
    machine = record["machine"]
    place = machine["accelerator"] or f"{machine['threads']} of {machine['cores']} CPU cores ({machine['processor']})"
    return (
        f"{record['updates']:,} updates of {train['batch_size']} windows in {_duration(record['seconds'])} on {place}"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _commit(facts: FinishedRun) -> str:
    commit = facts.record["commit"]
    if commit is None:
        return f"seqwm {facts.record['versions']['seqwm']}"
    return f"commit `{commit.rstrip('+')[:12]}`" + (" with changes" if commit.endswith("+") else "")


def _limits(facts: FinishedRun) -> str:
    spread = facts.record["data"].get("returns")
    lines = [
        "- Made for one environment and its exact observations and actions; it knows no other.",
        "- One training seed; another may do better or worse than the interval says.",
    ]
    if spread:
        lines.insert(0, f"- No return beyond {spread[2]:.4g}, the best in its data, was ever shown to it.")
    return "\n".join(lines)


def _licence(facts: FinishedRun) -> str:
    known = facts.record["data"].get("provenance", {})
    licence = known.get("licence") or known.get("license")
    terms = f"under {licence}" if licence else "under terms of its own, to be found where it came from"
    return f"Weights and code: Apache-2.0. The data is {terms}."


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _first_paragraph(method: str) -> str:
    import seqwm.methods

    for folder in seqwm.methods.__path__:
        file = Path(folder) / f"{method}.py"
        if file.is_file():
            return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")[0].replace("\n", " ")
    return ""
