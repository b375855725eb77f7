"""What a figure was measured on: command, commit, versions and machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import seqwm
from seqwm.core.shipped import shipped_folder

_PACKAGES = ("torch", "transformers", "numpy", "gymnasium", "mujoco", "ale-py", "minigrid", "accelerate")


def provenance() -> dict[str, Any]:
    """Command, commit, versions and machine of this process, as JSON."""
    return {"command": command(), "commit": commit(), "versions": versions(), "machine": machine()}


def command() -> str:
    """The command line of this process, the program named without its folder."""
    program = Path(sys.argv[0]).name
    return shlex.join(["seqwm" if program in ("seqwm", "__main__.py") else program, *sys.argv[1:]])


def commit() -> str | None:
    """The commit of the checkout that seqwm runs from, '+' behind it where files differ from it; None elsewhere."""
    root = shipped_folder()
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+" if changed else head


def versions() -> dict[str, str]:
    """Python's, seqwm's and of those packages that figures depend on and that are installed."""
    found = {"python": platform.python_version(), "seqwm": seqwm.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """System, processor, threads, and the accelerator if there is one."""
    import torch

    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
