"""`seqwm.load_model`: a run folder, a saved folder or a Hub repository to the model that it holds.

The class is found by the `model_type` in config.json, 'seqwm_NAME' for the file seqwm/methods/NAME.py; nothing that a
stranger's folder names is imported or executed, and weights are read from safetensors only.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from seqwm.core.errors import CheckpointError
from seqwm.methods import method_module, methods

_PREFIX = "seqwm_"


def load_model(name: str | Path, *, revision: str | None = None) -> Any:
    """The trained model of a run or a repository, in float32, ready to act.

    Args:
        name: a run folder, a folder with config.json and model.safetensors, or 'user/name' on the Hub.
        revision: branch, tag or commit of a Hub repository.

    Returns:
        An instance of the method's `PreTrainedModel`: `policy(...)` acts with it.

    Raises:
        CheckpointError: nothing there, a model of another library, or weights that are not safetensors.
    """
    import torch
    import transformers

    folder = find_model(name, revision=revision)
    config = json.loads((folder / "config.json").read_text())
    kind = str(config.get("model_type"))
    if not (folder / "model.safetensors").is_file() and not (folder / "model.safetensors.index.json").is_file():
        found = sorted(path.name for path in folder.iterdir())
        raise CheckpointError(
            f"{name}: no model.safetensors (found {', '.join(found)}); pickled weights are never read, "
            "save the model again with save_pretrained"
        )
    transformers.utils.logging.disable_progress_bar()
    if kind == "decision_transformer":
        return _from_transformers(name, folder)
    method = kind.removeprefix(_PREFIX)
    if not kind.startswith(_PREFIX) or method not in methods():
        known = ", ".join(f"{_PREFIX}{each}" for each in methods())
        raise CheckpointError(f"{name}: config.json names model_type '{kind}', expected one of {known}")
    return _model_class(method).from_pretrained(folder, dtype=torch.float32).eval()


def find_model(name: str | Path, *, revision: str | None = None) -> Path:
    """The local folder with config.json of a run, a saved model or a (downloaded) Hub repository."""
    for folder in (Path(name) / "model", Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).exists():
        mend = "it may not have finished: go on with `seqwm train RECIPE --out DIR --resume`"
        raise CheckpointError(f"{name}: no model in this folder (config.json is missing); {mend}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.yaml", "README.md"]
        folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=wanted))
    except HFValidationError:
        raise CheckpointError(f"{name}: no such folder, and no Hub name either (user/name)") from None
    except LocalEntryNotFoundError:
        raise CheckpointError(f"{name}: no such folder, and the Hub cannot be reached to look for it there") from None
    except HfHubHTTPError as error:
        raise CheckpointError(f"{name}: no such folder, and the Hub answers: {str(error).splitlines()[0]}") from None
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name}: the repository has no config.json, so it holds no model of this kind")
    return folder


def _model_class(method: str) -> Any:
    """The network of a method's file: the one PreTrainedModel that is defined there."""
    from transformers import PreTrainedModel

    module = method_module(method)
    own = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, PreTrainedModel) and member.__module__ == module.__name__
    ]
    assert len(own) == 1, f"{module.__name__}: expected one PreTrainedModel, found {own}"
    return own[0]


def _from_transformers(name: str | Path, folder: Path) -> Any:
    """A Decision Transformer of transformers' own class whose config tells its normalisation."""
    import torch
    import transformers

    from seqwm.methods.decision_transformer import from_transformers

    exported = transformers.DecisionTransformerModel.from_pretrained(folder, dtype=torch.float32)
    told = exported.config
    missing = [key for key in ("state_mean", "state_std", "return_scale") if getattr(told, key, None) is None]
    if missing:
        raise CheckpointError(
            f"{name}: config.json does not tell {', '.join(missing)}, without which the model cannot act; take them "
            "from the model card and call seqwm.methods.decision_transformer.from_transformers"
        )
    return from_transformers(
        exported,
        state_mean=told.state_mean,
        state_std=told.state_std,
        return_scale=told.return_scale,
        environment=getattr(told, "environment", None),
    )
