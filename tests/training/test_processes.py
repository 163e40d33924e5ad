"""Two processes of accelerate learn what one does with the doubled batch, and write one adapter between them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from phantom_films import write_phantoms
from safetensors.torch import load_file

from adapters.files import read_adapter
from foundation.checkpoint import open_checkpoint
from foundation.tiny import make_tiny_checkpoint

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).parent / "two_processes.py"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launch(processes: int, *arguments: object) -> None:
    """`accelerate launch` starts one process only where there is no GPU; torchrun's are what accelerate finds then."""
    options = ["--nnodes", 1, "--nproc_per_node", processes, "--master_addr", "127.0.0.1", "--master_port", free_port()]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_processes_learn_what_one_learns_with_the_doubled_batch(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    launch(2, SCRIPT, tmp_path / "two", 4)
    launch(1, SCRIPT, tmp_path / "one", 8)
    first, second = (load_file(tmp_path / "two" / f"{number}.safetensors") for number in range(2))
    alone = load_file(tmp_path / "one" / "0.safetensors")
    assert (int(first["processes"]), int(alone["processes"])) == (2, 1)
    assert int(first["steps"]) == int(alone["steps"]) == 9
    for name, tensor in alone.items():
        if name != "processes":
            torch.testing.assert_close(first[name], tensor, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(second[name], first[name], atol=0, rtol=0)
    torch.manual_seed(3)
    assert not torch.allclose(torch.nn.Linear(4, 1).weight, alone["weight"], atol=0.1)  # it did learn


def test_two_processes_write_one_adapter_between_them(tmp_path: Path) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "films").mkdir()
    manifest = write_phantoms(tmp_path / "films", {"train": 16, "val": 8, "test": 8})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "both"\n[lora]\nrank = 2\n[training]\nepochs = 1\nbatch_size = 4\nlora_rate = 1e-3\n')
    given = ["--manifest", manifest, "--out", tmp_path / "out", "--recipe", recipe, "--checkpoint", checkpoint, "--json"]
    launch(2, "-m", "app.cli", "finetune", "classification", *given)
    adapter = read_adapter(tmp_path / "out" / "both", open_checkpoint(str(checkpoint)).backbone)
    assert {metric.split for metric in adapter.card.metrics} == {"val", "test"}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["training"]["steps"] == 2
