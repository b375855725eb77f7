"""Files that are whole whenever they are there: written aside, synced, renamed."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path


def aside(path: Path) -> Path:
    """Where this thread writes what becomes `path`: hidden, in the same folder, shared with no other writer."""
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    temporary = aside(path)
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
