"""What is published works where seqwm is not: in a process that cannot import it, with the real clients."""

from __future__ import annotations

import inspect

import pytest
import torch

from seqwm.hub.load import load_model
from seqwm.hub.publish import publish
from tests.hub.conftest import METHODS, actions_of, in_a_process_without_seqwm

THROUGH_AUTO_CLASSES = """
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

found = {}
for repository in json.loads(sys.argv[2]):
    model = AutoModel.from_pretrained(repository, trust_remote_code=True)
    assert not model.training
    assert type(model.config) is type(AutoConfig.from_pretrained(repository, trust_remote_code=True))
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    found[repository] = actions_of(model).contiguous()
"""
THROUGH_TRANSFORMERS_OWN_CLASS = """
from transformers import DecisionTransformerModel

model = DecisionTransformerModel.from_pretrained("user/decision_transformer", subfolder="transformers").eval()
config, lanes, steps = model.config, 3, 6
mean, std = torch.tensor(config.state_mean), torch.tensor(config.state_std)
generator = torch.Generator().manual_seed(0)
states, actions, returns, chosen = [], [], [], []
to_go = torch.tensor([50.0, 100.0, 150.0])
for step in range(steps):
    states.append((3 * torch.randn(lanes, 4, generator=generator) - mean) / std)
    to_go = to_go - (1.0 if step else 0.0)
    returns.append(to_go / config.return_scale)
    actions.append(torch.zeros(lanes, config.act_dim))
    last = slice(-config.context_length, None)
    first = max(0, step + 1 - config.context_length)
    with torch.no_grad():
        _, outputs, _ = model(
            states=torch.stack(states[last], 1), actions=torch.stack(actions[last], 1), rewards=None,
            returns_to_go=torch.stack(returns[last], 1)[..., None],
            timesteps=torch.arange(first, step + 1).expand(lanes, -1),
            attention_mask=torch.ones(lanes, step + 1 - first), return_dict=False,
        )
    chosen.append(outputs[:, -1].argmax(-1))
    actions[-1] = torch.nn.functional.one_hot(chosen[-1], config.act_dim).float()
found["transformers' own"] = torch.stack(chosen)
assert not [name for name in sys.modules if name.split(".")[0] == "seqwm"]
save_file(found, sys.argv[1])
"""


@pytest.fixture(scope="module")
def found_elsewhere(runs, tmp_path_factory):
    """What every published method did in a process that cannot import seqwm and knows the Hub alone."""
    script = inspect.getsource(actions_of) + THROUGH_AUTO_CLASSES + THROUGH_TRANSFORMERS_OWN_CLASS
    return in_a_process_without_seqwm(script, runs, tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_acts_the_same_through_auto_classes_and_the_code_beside_its_weights(found_elsewhere, runs, method):
    wanted = actions_of(load_model(runs[method]))
    assert len(wanted.unique()) > 1
    # weights lie elsewhere in memory there, by which products round
    torch.testing.assert_close(found_elsewhere[f"user/{method}"], wanted, rtol=0, atol=1e-6)


def test_a_decision_transformer_acts_the_same_through_transformers_own_class(found_elsewhere, run):
    assert torch.equal(found_elsewhere["transformers' own"], actions_of(load_model(run)))


@pytest.mark.parametrize("method", METHODS)
def test_the_code_that_travels_names_its_origin_and_nothing_of_seqwm(runs, method, tmp_path):
    publish(runs[method], "user/model", dry_run=tmp_path / "dry")
    files = sorted((tmp_path / "dry").glob("*.py"))
    assert files
    for file in files:
        text = file.read_text()
        assert text.startswith("# From seqwm ")
        assert "from seqwm" not in text
        assert "import seqwm" not in text
        compile(text, file.name, "exec")
