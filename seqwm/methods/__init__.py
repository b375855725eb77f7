"""The methods: one file each, known by its name in recipes, published configurations and on the command line."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def methods() -> list[str]:
    """The names of all methods: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def method_module(method: str) -> ModuleType:
    """The module of a method that `methods` lists."""
    return importlib.import_module(f"{__name__}.{method}")
