"""`seqwm.load_model`: a run folder, a saved folder or a Hub repository to the model that it holds.

The class is found by the `model_type` in config.json: 'seqwm_NAME' for the file seqwm/methods/NAME.py, and
'decision_transformer' for transformers' own. Of a stranger's folder only tensors and the fields that the class knows
are read: no code beside the weights is imported, no pickle opened, no adapter or kernel fetched. What came from the
Hub is checked against the hashes it gave.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seqwm.core.errors import CheckpointError, HubError
from seqwm.core.hub import patiently, snapshot
from seqwm.methods import method_module, methods

PREFIX = "seqwm_"
"""Before a method's name, the `model_type` of its configuration."""

WORLD = "world"
"""The folder of a published model of diffusers: its weights, its config.json and its code."""

_WEIGHTS_AND_CONFIG = ["config.json", "*.safetensors", "*.safetensors.index.json"]
_WANTED = [*_WEIGHTS_AND_CONFIG, "model_index.json", "recipe.yaml", "run.json", "evaluation.json"]
_TOLD = (  # what `to_transformers` adds to a config of transformers' class
    *("state_mean", "state_std", "return_scale", "action_centre", "action_scale"),
    *("context_length", "observation_space", "action_space", "environment"),
)
_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # as transformers and diffusers call them


def load_model(name: str | Path, *, revision: str | None = None, normalisation: Mapping[str, Any] | None = None) -> Any:
    """The trained model of a run or a repository, in float32, ready to act.

    Args:
        name: a run folder, a folder with config.json and model.safetensors, or 'user/name' on the Hub.
        revision: branch, tag or commit of a Hub repository.
        normalisation: for a Decision Transformer of transformers' class whose config does not tell: keyword arguments
            of `seqwm.methods.decision_transformer.from_transformers` (state_mean, state_std, return_scale, ...), which
            such checkpoints tell in their cards.

    Returns:
        An instance of the method's `PreTrainedModel`: `policy(...)` acts with it.

    Raises:
        CheckpointError: nothing there, a model of another library, weights that are not whole or not safetensors.
        HubError: the Hub refused or cannot be reached, and the cache does not have it.
    """
    folder = find_model(name, revision=revision)
    config = _read_config(name, folder)
    _check_weights(name, folder)
    kind = str(config.get("model_type"))
    if kind == "decision_transformer":
        return _from_transformers(name, folder, config, normalisation or {})
    method = kind.removeprefix(PREFIX)
    if not kind.startswith(PREFIX) or method not in methods():
        known = ", ".join(f"{PREFIX}{each}" for each in methods())
        raise CheckpointError(
            f"{name}: config.json names model_type '{kind}', expected one of {known}, or decision_transformer"
        )
    model_class = find_class(method)
    if not hasattr(model_class, "config_class"):
        return _read_weights(name, folder, model_class)  # of diffusers, whose models read their own fields
    ours = [kind for kind in model_class.config_class.__mro__ if kind.__module__.startswith("seqwm.")]
    fields = [field for kind in ours for field in inspect.get_annotations(kind)]  # none of transformers' own
    settings = model_class.config_class(**{field: config[field] for field in fields if field in config})
    return _read_weights(name, folder, model_class, settings)


def find_model(name: str | Path, *, revision: str | None = None) -> Path:
    """The local folder with config.json of a run, a saved model or a (downloaded) Hub repository."""
    for folder in (Path(name) / "model", Path(name), Path(name) / WORLD):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).exists():
        mend = "it may not have finished: go on with `seqwm train RECIPE --out DIR --resume`"
        raise CheckpointError(f"{name}: no model in this folder (config.json is missing); {mend}")
    folder = _download(str(name), revision)
    if (folder / "model_index.json").is_file():
        folder = folder / WORLD
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name}: the repository has no config.json, so it holds no model of this kind")
    return folder


def find_class(method: str) -> Any:
    """The network of a method's file: the one PreTrainedModel of transformers, or ModelMixin of diffusers, in it."""
    from torch.nn import Module

    module = method_module(method)
    own = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Module) and hasattr(member, "from_pretrained") and member.__module__ == module.__name__
    ]
    assert len(own) == 1, f"{module.__name__}: expected one model that can be saved, found {own}"
    return own[0]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars for one file that is read or written in an instant."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _download(name: str, revision: str | None) -> Path:
    """The snapshot of a model repository: what the Hub has now, or what the cache has where it cannot be reached."""
    from huggingface_hub.errors import HFValidationError

    place = f"{name}{f'@{revision}' if revision else ''}: no such folder here; on the Hub"
    try:
        folder = patiently(lambda: snapshot(name, "model", revision, _WANTED, ["*/*"]), place, "read")
        if (folder / "model_index.json").is_file():  # a pipeline; its model is in a folder of the same commit
            wanted = [f"{WORLD}/{pattern}" for pattern in _WEIGHTS_AND_CONFIG]
            patiently(lambda: snapshot(name, "model", folder.name, wanted, [f"{WORLD}/*/*"]), place, "read")
        return folder
    except HFValidationError:
        raise CheckpointError(f"{name}: no such folder, and no Hub name either (user/name)") from None
    except ValueError as error:
        raise HubError(f"{place}: {error}; do not use this repository") from error


def _read_config(name: str | Path, folder: Path) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0]
        return dict(config)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{name}: config.json is no JSON object; fetch or save the model again") from error


def _check_weights(name: str | Path, folder: Path) -> None:
    """Refuse a folder without safetensors, with files missing, or with an adapter that would fetch other weights."""
    found = sorted(path.name for path in folder.iterdir())
    if "adapter_config.json" in found:
        raise CheckpointError(f"{name}: holds an adapter, expected whole weights; merge it and save the model again")
    if _INDEX in found:
        shards = set(json.loads((folder / _INDEX).read_text()).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if shard not in found)
        if missing:
            raise CheckpointError(f"{name}: {_INDEX} names {', '.join(missing)}, which is not there; fetch it again")
    elif not any(file in found for file in _WEIGHTS):
        pickled = [file for file in found if file.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
        if not pickled:
            raise CheckpointError(f"{name}: found no model.safetensors; save the model with save_pretrained")
        raise CheckpointError(
            f"{name}: found {', '.join(pickled)}, expected model.safetensors; a pickle can run code and is never "
            "opened. Ask the author for safetensors; where the Hub made a copy, it is at a revision like 'refs/pr/1'"
        )


def _read_weights(name: str | Path, folder: Path, model_class: Any, config: Any = None) -> Any:
    """The model with every one of its weights read, and no other."""
    import torch
    from safetensors import SafetensorError

    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    if config is not None:
        options |= {"config": config, "dtype": torch.float32}
    try:
        with quiet_transformers():
            model, told = model_class.from_pretrained(folder, **options)
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        said = next(line for line in [*str(error).splitlines(), "nothing more was said"] if line.strip())
        raise CheckpointError(
            f"{name}: model.safetensors cannot be read as config.json says ({said}); fetch or save the model again"
        ) from error
    for kind, mend in (("missing_keys", "lacks"), ("unexpected_keys", "has unknown")):
        if told[kind]:
            names = ", ".join(sorted(told[kind])[:4])
            raise CheckpointError(f"{name}: model.safetensors {mend} {names}; it is of another version or damaged")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # a file's places in memory are odd, and products round by where weights lie
    return model.eval()


def _from_transformers(name: str | Path, folder: Path, config: dict[str, Any], normalisation: Mapping[str, Any]) -> Any:
    """A Decision Transformer of transformers' own class."""
    import transformers

    from seqwm.methods.decision_transformer import from_transformers

    known = {*inspect.get_annotations(transformers.DecisionTransformerConfig), *_TOLD}
    settings = transformers.DecisionTransformerConfig(**{key: config[key] for key in known & config.keys()})
    exported = _read_weights(name, folder, transformers.DecisionTransformerModel, settings)
    steps = {"context_length": config["max_length"]} if "max_length" in config else {}  # which transformers 5 drops
    try:
        return from_transformers(exported, **{**steps, **normalisation})
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
