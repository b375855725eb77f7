"""Two processes, each with half of every batch, make the updates that one process makes with all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

WORKER = """
import json, os, sys
import torch
from seqwm.training.options import TrainOptions
from seqwm.training.supervised import SupervisedLearner
from tests.fakes.batches import LinearBatches
from tests.fakes.linear import Linear

rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
torch.manual_seed(0)
options = TrainOptions(steps=20, learning_rate=1e-2, gradient_clip=0.5, ema=0.9)
learner = SupervisedLearner(Linear(3, 2), LinearBatches(rank=rank, world_size=world), options, seed=0)
metrics = [learner.update(step) for step in range(20)]
weights = torch.cat([p.detach().flatten() for p in learner.trained().parameters()]).tolist()
with open(f"{sys.argv[1]}/{world}-{rank}.json", "w") as file:
    json.dump({"metrics": metrics, "weights": weights, "accelerate": "accelerate" in sys.modules}, file)
if world > 1:
    torch.distributed.barrier()  # neither leaves while the other still talks to it
    torch.distributed.destroy_process_group()
"""

STOPPED = """
import os, signal, sys
import torch
from seqwm.training.loop import train
from seqwm.training.options import TrainOptions
from seqwm.training.supervised import SupervisedLearner
from tests.fakes.batches import LinearBatches
from tests.fakes.linear import Linear

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
options = TrainOptions(steps=100000)
learner = SupervisedLearner(Linear(3, 2), LinearBatches(rank=rank, world_size=world), options, seed=0)

def hook(step, metrics, last):
    if step == 5 and rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if last:
        open(f"{sys.argv[1]}/{rank}-{step}", "w").close()

try:
    train(learner, 100000, hooks=[hook])
except SystemExit as stop:
    open(f"{sys.argv[1]}/status-{rank}-{stop.code}", "w").close()
torch.distributed.destroy_process_group()
"""


def launch(source, folder, processes):
    script = folder / "worker.py"
    script.write_text(source)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore"]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # 'multi_gpu' is accelerate's word for several processes; without a GPU they talk over gloo.
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [*command, str(script), str(folder)], env=environment, cwd=ROOT, timeout=240, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


def test_two_processes_make_the_losses_and_weights_of_one(tmp_path):
    launch(WORKER, tmp_path, 1)
    launch(WORKER, tmp_path, 2)
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first["metrics"] == second["metrics"]
    assert first["weights"] == second["weights"]
    for found, expected in zip(first["metrics"], one["metrics"], strict=True):
        # The root of a mean is no mean over shares, so the fake's own figure is left out.
        found.pop("action_error"), expected.pop("action_error")
        assert found == pytest.approx(expected, abs=1e-6)
    assert first["weights"] == pytest.approx(one["weights"], abs=1e-6)
    assert not one["accelerate"]


def test_a_signal_to_one_process_stops_all_after_the_same_update(tmp_path):
    launch(STOPPED, tmp_path, 2)
    marks = {path.name for path in tmp_path.iterdir()} - {"worker.py"}
    assert {"status-0-143", "status-1-143"} < marks
    assert {mark for mark in marks if not mark.startswith("status")} == {"0-6", "1-6"}
