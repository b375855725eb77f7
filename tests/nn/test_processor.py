"""What the machine can do is asked of torch, and no more is claimed than it says."""

from __future__ import annotations

import pytest
import torch

from seqwm.nn.processor import computes_in_bf16, reaches_onednn


@pytest.mark.parametrize(
    ("answers", "expected"), [((True, False), True), ((False, True), True), ((False, False), False)]
)
def test_the_processor_is_asked_what_it_can_do(answers, expected, monkeypatch):
    for question, answer in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), answers, strict=True):
        monkeypatch.setattr(torch.cpu, question, lambda answer=answer: answer, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert computes_in_bf16.__wrapped__("cpu") is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert computes_in_bf16.__wrapped__("cpu") is False
    assert computes_in_bf16.__wrapped__("mps") is False


def test_onednn_is_called_only_where_torch_was_built_with_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert reaches_onednn.__wrapped__() is False
    assert reaches_onednn.__wrapped__(in_bf16=True) is False
