"""An exported folder opens in plain transformers and answers as the decoder does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.binding import build_open_clip
from foundation.checkpoint import open_checkpoint, save_checkpoint
from foundation.decoder import Decoder
from foundation.errors import CheckpointNotFound, CheckpointRefused, InvalidRequest
from foundation.export import export_llava
from foundation.preprocess import normalise
from foundation.prompt import FindingState, Turn, findings_text
from foundation.sampling import Sampling
from foundation.tiny_decoder import make_tiny_decoder, tiny_vocabulary
from foundation.wordpiece import write_tokenizer

ASKED = [Turn("user", "Where is the effusion?")]
STATED = [FindingState("effusion", 0.83, True), FindingState("mass", 0.04, False)]


def checkpoint(folder: Path, timm_name: str, size: int, *, class_token: bool = False) -> Path:
    """An open_clip folder with a random image tower, a tiny text tower and a tiny decoder."""
    vision: dict[str, Any] = {"timm_model_name": timm_name, "timm_pool": "avg", "image_size": size}
    if timm_name.startswith("vit"):
        options = {"depth": 2, "embed_dim": 48, "num_heads": 3, "init_values": 0.7}
        vision["timm_model_name"] = register_vit(f"vit_export_{size}_{class_token}", size, class_token, options)
    text = {"vocab_size": len(tiny_vocabulary()), "width": 16, "heads": 2, "layers": 1, "context_length": 16}
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "custom_text": True,
            "vision_cfg": vision,
            "text_cfg": {**text, "hf_tokenizer_name": "tokenizer", "embed_cls": True, "no_causal_mask": True},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    torch.manual_seed(0)
    model: Any = build_open_clip(config)
    for name, tensor in model.visual.state_dict().items():  # statistics and norms that are not the identity
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand_like(tensor) * 0.5 + (0.75 if "var" in name or "weight" in name else -0.25))
    settle_norms(model.visual, size)
    tokenizer = folder.parent / f"{folder.name}_tokenizer"
    write_tokenizer(tiny_vocabulary(), tokenizer, 16)
    save_checkpoint(model.eval(), config, tokenizer, folder, torch.float32)
    make_tiny_decoder(folder, image_width={"visformer_tiny": 384, "resnet14t": 2048}.get(timm_name, 48))
    return folder


def settle_norms(visual: torch.nn.Module, size: int) -> None:
    """Running statistics from random films, as training would leave them.

    Without them a random tower's activations grow from block to block to the thousands, and rounding with them: two right
    programs then differ by several per cent.
    """
    norms = [module for module in visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average
        norm.reset_running_stats()
    visual.train()
    with torch.no_grad():
        visual(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1)))
    visual.eval()


def register_vit(name: str, size: int, class_token: bool, options: dict[str, Any]) -> str:
    """A small timm ViT with layer scale, under a name of its own in this process."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    def build(pretrained: bool = False, num_classes: int = 0, global_pool: str = "avg", **unused: Any) -> Any:
        tower: Any = VisionTransformer(
            img_size=size,
            patch_size=16,
            class_token=class_token,
            num_classes=num_classes,
            global_pool="token" if class_token else global_pool,
            **options,
        )
        tower.default_cfg = {}  # timm's own builder sets it, and open_clip asks for it
        return tower

    build.__name__ = name
    if not timm.is_model(name):
        timm.models.register_model(build)
    return name


@pytest.mark.parametrize(
    ("timm_name", "size", "kind"),
    [
        ("vit", 64, "LlavaForConditionalGeneration"),
        ("visformer_tiny", 224, "FastVlmForConditionalGeneration"),
        ("resnet14t", 96, "FastVlmForConditionalGeneration"),
    ],
)
def test_plain_transformers_gives_the_same_greedy_answer(tmp_path: Path, timm_name: str, size: int, kind: str) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = checkpoint(tmp_path / "checkpoint", timm_name, size)
    out = export_llava(folder, tmp_path / "exported")
    model, told = AutoModelForImageTextToText.from_pretrained(str(out), output_loading_info=True)
    assert type(model).__name__ == kind
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(str(out))
    backbone = open_checkpoint(str(folder)).backbone
    decoder = Decoder.load(folder)
    film = np.random.default_rng(0).integers(0, 255, (size, size, 3)).astype(np.uint8)
    pixels = torch.from_numpy(normalise(film, backbone.contract))[None]
    with torch.inference_mode():
        tokens = backbone.encode_image(pixels).tokens[0]
    prompt = decoder.tokenizer.text(decoder.tokenizer.prompt(ASKED, findings_text(STATED), 1))
    inputs = processor(images=Image.fromarray(film), text=prompt, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == decoder.prompt_ids(ASKED, STATED, len(tokens))
    torch.testing.assert_close(inputs["pixel_values"], pixels, atol=1e-5, rtol=0)
    ours = decoder.generate(ASKED, STATED, tokens, Sampling(max_tokens=16))
    theirs = model.eval().generate(**inputs, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
    assert theirs.tolist() == list(ours.token_ids)
    with torch.inference_mode():
        projected = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0]
        expected = decoder.projector(tokens)
    torch.testing.assert_close(projected.squeeze(0), expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


def test_the_chat_template_writes_the_prompt_without_hints(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    folder = checkpoint(tmp_path / "checkpoint", "vit", 64)
    processor = AutoProcessor.from_pretrained(str(export_llava(folder, tmp_path / "exported")))
    messages = [
        {"role": "system", "content": findings_text(STATED)},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED[0].text}]},
    ]
    written = processor.apply_chat_template(messages, add_generation_prompt=True)
    tokenizer = Decoder.load(folder).tokenizer
    expected = tokenizer.prompt(ASKED, findings_text(STATED), 1, with_hints=False)
    assert processor.tokenizer(written)["input_ids"] == expected


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint", "vit", 64, class_token=True)
    with pytest.raises(CheckpointRefused, match="class token"):
        export_llava(folder, tmp_path / "exported")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InvalidRequest, match="not empty"):
        export_llava(folder, tmp_path / "full")
    (folder / "decoder" / "config.json").unlink()
    with pytest.raises(CheckpointNotFound, match="no decoder"):
        export_llava(folder, tmp_path / "exported")
