"""`seqwm publish`: a finished run to a Hub repository that loads with seqwm, and without.

README.md                        the card (`seqwm.hub.card`)
config.json, model.safetensors   the model, normalisation and tokenizer within; `seqwm.load_model`
seqwm_*.py                       its code, for Auto classes with trust_remote_code (`seqwm.hub.standalone`)
model_index.json, pipeline.py    for models of diffusers: a pipeline around the model, which is then in world/
transformers/                    the same network as transformers' own class, for methods that have one
recipe.yaml, run.json            what was asked for, and what was done on what
evaluation.json                  every episode
dream/                           errors and pictures of a world's dreams, where `seqwm dream` made some
curve.png, replay.mp4            to look at; the Hub shows replay.mp4 on top
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from seqwm.core.errors import CheckpointError, SpaceError
from seqwm.core.files import write_atomically
from seqwm.hub.card import card
from seqwm.hub.dream_section import FOLDER as DREAMS
from seqwm.hub.dream_section import PICTURES
from seqwm.hub.finished_run import read_finished
from seqwm.hub.load import WORLD, load_model, quiet_transformers
from seqwm.hub.standalone import write_standalone, write_standalone_world
from seqwm.hub.upload import put_aside, upload_folder
from seqwm.methods import method_module

_FROM_RUN = ("recipe.yaml", "run.json", "evaluation.json", "curve.png", "replay.mp4")
_OWNED = (
    *(*_FROM_RUN, "README.md", "config.json", "*.safetensors", "*.safetensors.index.json", "seqwm_*.py"),
    *("model_index.json", "pipeline.py", f"{WORLD}/*", f"{DREAMS}/*", "transformers/*"),
)


def publish(
    run: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: str | Path | None = None,
) -> str:
    """Publish a finished run, in one commit; again without effect where nothing has changed.

    Args:
        run: its folder.
        repository: 'user/name', made where it is not there.
        private: whether a repository that is made is private.
        revision: a branch, made where it is not there; `main` when None.
        dry_run: write the exact folder there, new or empty, and send nothing.

    Returns:
        The address of the commit, or the folder of a dry run.

    Raises:
        CheckpointError: the run has not finished, or holds what must not leave it.
        HubError: naming cause and next step; the repository is as it was then.
    """
    run = Path(run)
    with tempfile.TemporaryDirectory(prefix="seqwm-publish-") as temporary:
        folder = Path(temporary) / "repository"
        compose(run, repository, folder)
        if dry_run is not None:
            return str(put_aside(folder, Path(dry_run)))
        method = read_finished(run).recipe["method"]
        return upload_folder(
            folder,
            repository,
            private=private,
            revision=revision,
            message=f"Publish a {method.replace('_', ' ')}",
            owned=_OWNED,
        )


def compose(run: Path, repository: str, folder: Path) -> None:
    """Write into the new `folder` everything that a published run consists of."""
    method = read_finished(run).recipe["method"]
    model = load_model(run / "model")  # refuses weights that are not whole
    of_diffusers = not hasattr(model, "config_class")
    weights = folder / WORLD if of_diffusers else folder
    weights.mkdir(parents=True)
    for file in sorted((run / "model").glob("*.safetensors*")):
        _copy(run, file, weights / file.name)
    for name in _FROM_RUN:
        if (run / name).exists():
            _copy(run, run / name, folder / name)
    for name in ("dream.json", *PICTURES):
        if (run / DREAMS / name).exists():
            (folder / DREAMS).mkdir(exist_ok=True)
            _copy(run, run / DREAMS / name, folder / DREAMS / name)
    config = json.loads((run / "model" / "config.json").read_text())
    if of_diffusers:
        write_standalone_world(method, folder)
    else:
        config["auto_map"] = write_standalone(method, folder)
    write_atomically(weights / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    exported = _write_transformers(method, model, folder / "transformers")
    write_atomically(folder / "README.md", card(run, repository, exported=exported).encode())


def _write_transformers(method: str, model: Any, folder: Path) -> bool:
    """The network as transformers' own class, where there is one that can express it."""
    to_transformers = getattr(method_module(method), "to_transformers", None)
    if to_transformers is None:
        return False
    try:
        exported = to_transformers(model)
    except SpaceError:
        return False
    with quiet_transformers():
        exported.save_pretrained(folder)
    return True


def _copy(run: Path, file: Path, target: Path) -> None:
    """A file of the run; what lies elsewhere and is only linked to here stays private."""
    if not file.resolve().is_relative_to(run.resolve()):
        raise CheckpointError(f"{file}: leads out of the run's folder; put the file itself there, or remove it")
    shutil.copyfile(file, target)
