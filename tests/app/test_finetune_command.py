"""One command a task, on a checkpoint in BiomedCLIP's layout: an adapter that plain peft opens, and a report."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch

from adapters.card import read_card
from adapters.files import read_adapter
from adapters.lora import load_weights, remove_lora
from adapters.tasks.chat import open_chat_adapter
from app.cli import main
from foundation.checkpoint import open_checkpoint
from foundation.decoder import Decoder
from foundation.tiny import make_tiny_checkpoint
from foundation.tiny_decoder import make_tiny_decoder
from tests.training.phantom_films import write_phantoms

BRIEF = """
[training]
epochs = 1
batch_size = 16
lora_rate = 1e-3
"""
RECIPES = {
    "classification": "[lora]\nrank = 2",
    "segmentation": '[lora]\nrank = 2\n[[data.masks]]\nfield = "mask"\nclasses = { "lungs" = [] }',
    "anomaly": '[lora]\nrank = 2\n[head]\nfindings = ["effusion"]\nmemory = 32\nmemory_width = 8\ncomponents = 4',
    "fusion": """
[data.outcome]
label = "ill"
column = "ward"
[[data.field]]
name = "crp"
low = 0.0
[lora]
rank = 2
alpha = 2.0
first_block = 1
[head]
film = 4
patch = 4
width = 8
folds = 2
steps = 5
[views]
cached = 2
""",
    "chat": '[lora]\nrank = 2\n[data]\nfindings = ""\n[views]\ncount = 1',
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), "biomedclip")
    make_tiny_decoder(folder, image_width=open_checkpoint(str(folder)).backbone.width)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms with labels, masks, a table and questions."""
    path = write_phantoms(tmp_path_factory.mktemp("films"), {"train": 16, "val": 8, "test": 8})
    lines = []
    for number, line in enumerate(map(json.loads, path.read_text().splitlines())):
        is_ill = bool(number % 2)
        qa = [{"question": "Is there an effusion?", "answer": "Yes" if is_ill else "No", "question_type": "PRES"}]
        table = {"ward": 1.0 if is_ill else None, "crp": 10.0 * number}
        lines.append(json.dumps(line | {"qa": qa, "tabular": table}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("task", RECIPES)
def test_one_command_makes_an_adapter_that_peft_opens_and_a_report(
    task: str, checkpoint: Path, manifest: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'name = "tiny-{task}"\ntask = "{task}"\n{RECIPES[task]}\n{BRIEF}')
    given = ["--manifest", str(manifest), "--out", str(tmp_path / "out"), "--recipe", str(recipe)]
    assert main(["finetune", task, *given, "--checkpoint", str(checkpoint), "--json"]) == 0
    folder = tmp_path / "out" / f"tiny-{task}"
    card = read_card(folder)
    assert card.task == task
    assert card.recipe["training"]["storage"] == "float16"
    assert {metric.split for metric in card.metrics} >= {"test"}
    assert "test" in (tmp_path / "out" / "report.md").read_text()
    if task == "chat":
        decoder = Decoder.load(checkpoint)
        assert open_chat_adapter(folder, open_checkpoint(str(checkpoint)).backbone, decoder).card == card
        return
    ours, theirs = (open_checkpoint(str(checkpoint)).backbone for _ in range(2))
    pixels = torch.rand(2, 3, ours.contract.size, ours.contract.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        base = ours.encode_image(pixels).tokens
        load_weights(ours.image_tower, read_adapter(folder, ours).lora)
        adapted = ours.encode_image(pixels).tokens
        peft.PeftModel.from_pretrained(theirs.image_tower, str(folder)).eval()
        torch.testing.assert_close(theirs.encode_image(pixels).tokens, adapted, atol=1e-5, rtol=1e-5)
        assert not torch.equal(base, adapted)
    remove_lora(ours.image_tower)
