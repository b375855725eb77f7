"""What this machine computes well, asked once.

Nothing is timed: a run that chose by the clock would not be the same twice.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch


@functools.cache
def computes_in_bf16(kind: str) -> bool:
    """Whether devices of a kind ('cpu', 'cuda') have instructions for products in bf16."""
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    if kind != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, question, bool)()) for question in questions)


@functools.cache
def reaches_onednn(*, in_bf16: bool = False) -> bool:
    """Whether oneDNN's own products can be called here, with factors in bf16 where `in_bf16`."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return not in_bf16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def half_used_by_mkl() -> bool:
    """Whether this is a processor whose vectors MKL, torch's own library, leaves half unused.

    AMD's with 512-bit units are, from family 26 on.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not on Linux
        return False
    first = dict(line.replace("\t", "").split(": ", 1) for line in lines[:10] if ": " in line)
    return first.get("vendor_id") == "AuthenticAMD" and int(first.get("cpu family", "0")) >= 26
