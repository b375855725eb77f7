"""Where the recipes and data that come with the package lie: a checkout's own folders, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder() -> Path:
    """The folder that holds `recipes/`, `datasets/` and `model_cards/`."""
    inside_wheel = _PACKAGE / "_share"
    return inside_wheel if inside_wheel.is_dir() else _PACKAGE.parent


def find(path: str | Path) -> Path | None:
    """A path as it is (a relative one from the working directory), else the same path among what is shipped."""
    here = Path(path).expanduser()
    if here.exists():
        return here
    shipped = shipped_folder() / path
    return shipped if shipped.exists() else None


def locate_source(source: str) -> str:
    """A data source with its path, if it is one of a shipped file or folder, made to point there.

    'datasets/cartpole' and 'd4rl:datasets/a.hdf5' are looked up; 'minari:a/b-v0' stays as it is unless such a path is
    shipped.
    """
    scheme, colon, location = source.rpartition(":")
    if "/" in scheme:  # the colon belongs to the path
        scheme, colon, location = "", "", source
    found = find(location)
    return source if found is None else f"{scheme}{colon}{found}"
