"""spec.json: what a store is made of, with a checksum of itself, replaced as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqwm.core.errors import DataError
from seqwm.core.files import write_atomically
from seqwm.data.problems import Problem

FORMAT_VERSION = 1

_CHECKSUM = ',\n"checksum": "'


def write_manifest(path: Path, body: Mapping[str, Any]) -> None:
    """Write `body` and the sha256 of its text, so that a reader sees the old file or the new one."""
    text = json.dumps(dict(body), indent=1)
    sealed = f'{text[:-2]}{_CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'
    write_atomically(path, sealed.encode())


def read_manifest(path: Path) -> dict[str, Any]:
    """What `write_manifest` wrote; raises DataError where the file is missing, changed or of another version."""
    mend = "the store is damaged: convert or collect the data again"
    if not path.is_file():
        raise DataError([Problem("not-a-store", "no spec.json", "a folder made by seqwm", "check the path", str(path))])
    text = path.read_bytes().decode("utf-8", errors="replace")
    head, _, tail = text.rpartition(_CHECKSUM)
    body = head + "\n}"
    if tail != f'{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n':
        raise DataError(
            [Problem("checksum-mismatch", "a changed spec.json", "the one that was written", mend, str(path))]
        )
    spec: dict[str, Any] = json.loads(body)
    if spec["version"] != FORMAT_VERSION:
        found, expected = f"format version {spec['version']}", f"version {FORMAT_VERSION}"
        mend = "upgrade seqwm, or convert the original data again"
        raise DataError([Problem("unknown-version", found, expected, mend, str(path))])
    return spec
