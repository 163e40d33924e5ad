"""The chat model as one folder that plain transformers opens: `AutoModelForImageTextToText` and `AutoProcessor`.

    image tower                      becomes                                          read by the projector
    timm ViT without class token     LlavaForConditionalGeneration, SiglipVisionModel    tokens before the final norm
    visformer                        FastVlmForConditionalGeneration, timm_wrapper       map after the final norm
    ResNet                           FastVlmForConditionalGeneration, timm_wrapper       map of the last block

A visformer's final norm is a scale and a shift per channel, which the exported projector undoes; both forms give the answers of
`Decoder.generate` for the same film and prompt. The findings are part of the prompt: `Decoder.prompt_ids` as text
(`PromptTokenizer.text`), or the chat template with the findings as the system message.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foundation.binding import bind, build_open_clip, input_contract
from foundation.checkpoint import read_config, read_tensors
from foundation.decoder import Decoder
from foundation.decoder_folder import DECODER_FOLDER
from foundation.errors import CheckpointNotFound, CheckpointRefused, InvalidRequest
from foundation.folder_check import check_folder, find_weights
from foundation.preprocess import InputContract

CHAT_TEMPLATE = (
    "[BOS]"
    "{% for message in messages %}{% if message['content'] is not string %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %} <image>{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% set words %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endset %}"
    "{% if message['role'] == 'system' %} <findings> {{ words }}"
    "{% elif message['role'] == 'user' %} <user> {{ words }} <assistant>"
    "{% else %} {{ words }} [EOS]{% endif %}"
    "{% endfor %}"
)
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


@dataclass(frozen=True)
class VisionExport:
    """The image side of the exported model: its config, its tensors, and what follows from its kind."""

    model_type: str  # of the whole model
    architecture: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]  # names inside the vision tower
    patch_size: int
    norm: tuple[Tensor, Tensor] | None = None  # scale and shift per channel that the projector has to undo


def export_llava(checkpoint: Path, out: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `checkpoint` (an open_clip folder with a decoder) to `out`; returns `out`.

    Raises CheckpointNotFound without a decoder, CheckpointRefused for an image tower with a class token or of a family that
    transformers' LLaVA models cannot hold, InvalidRequest if `out` is not empty.
    """
    check_folder(checkpoint)
    if not (checkpoint / DECODER_FOLDER / "config.json").is_file():
        raise CheckpointNotFound(f"{checkpoint.name} has no decoder to export; train one with `vesalius pretrain`.")
    if out.exists() and any(out.iterdir()):
        raise InvalidRequest(f"{out} is not empty; give a new folder.", param="out")
    config = read_config(checkpoint)
    model = build_open_clip(config, custom_text=True)
    bind(model, read_tensors(find_weights(checkpoint)))
    contract = input_contract(config, model)
    decoder = Decoder.load(checkpoint)
    name = str(config["model_cfg"]["vision_cfg"].get("timm_model_name", ""))
    vision = _export_vision(model.eval().visual, contract, name)
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in _tensors(vision, decoder)}
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, out / "model.safetensors", {"format": "pt"}
    )
    _write_json(out / "config.json", _model_config(vision, decoder, contract, dtype))
    _write_json(out / "generation_config.json", decoder.generation_config())
    _write_processor(vision, decoder, contract, checkpoint / DECODER_FOLDER, out)
    return out


def _tensors(vision: VisionExport, decoder: Decoder) -> list[tuple[str, Tensor]]:
    """All tensors under the names of transformers' LLaVA family; the tied output embedding once."""
    named = [(f"model.vision_tower.{name}", tensor) for name, tensor in vision.tensors.items()]
    projector = decoder.projector.state_dict()
    if vision.norm is not None:
        projector = _undo_norm(projector, *vision.norm)
    named += [(f"model.multi_modal_projector.{name}", tensor) for name, tensor in projector.items()]
    for name, tensor in decoder.model.state_dict().items():
        if name != "lm_head.weight":
            named.append((f"model.language_model.{name.removeprefix('model.')}", tensor))
    return named


def _undo_norm(projector: Mapping[str, Tensor], scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """The projector of y = scale * x + shift that gives what `projector` gives of x."""
    if bool((scale.abs() < 1e-8).any()):
        raise CheckpointRefused("A channel of the image tower's final norm is zero, so its input cannot be recovered.")
    weight = projector["linear_1.weight"].double() / scale.double()
    bias = projector["linear_1.bias"].double() - weight @ shift.double()
    return {**projector, "linear_1.weight": weight.float(), "linear_1.bias": bias.float()}


def _model_config(vision: VisionExport, decoder: Decoder, contract: InputContract, dtype: torch.dtype) -> dict[str, Any]:
    text = decoder.model.config.to_dict()
    return {
        "model_type": vision.model_type,
        "architectures": [vision.architecture],
        "dtype": str(dtype).removeprefix("torch."),
        "image_token_index": decoder.image_id,
        "image_seq_length": (contract.size // vision.patch_size) ** 2,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
        "vision_config": dict(vision.config),
        "text_config": {key: value for key, value in text.items() if key not in ("_name_or_path", "dtype")},
    }


# The image side


def _export_vision(visual: Any, contract: InputContract, timm_name: str) -> VisionExport:
    import timm.models.resnet
    import timm.models.visformer
    import timm.models.vision_transformer

    trunk = getattr(visual, "trunk", None)
    if isinstance(trunk, timm.models.visformer.Visformer):
        return _export_visformer(trunk, timm_name)
    if isinstance(trunk, timm.models.resnet.ResNet):
        return VisionExport("fast_vlm", "FastVlmForConditionalGeneration", *_timm_wrapper(trunk, timm_name), 32)
    if isinstance(trunk, timm.models.vision_transformer.VisionTransformer):
        return _export_vit(trunk, contract)
    raise CheckpointRefused(
        f"The image tower is a {type(trunk or visual).__name__}; only timm ViTs, visformers and ResNets can be exported."
    )


def _export_visformer(trunk: Any, timm_name: str) -> VisionExport:
    norm = trunk.norm
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    config, tensors = _timm_wrapper(trunk, timm_name)
    return VisionExport("fast_vlm", "FastVlmForConditionalGeneration", config, tensors, 32, (scale.detach(), shift.detach()))


def _timm_wrapper(trunk: Any, timm_name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a convolutional timm tower as transformers' TimmWrapperModel holds it."""
    config = {
        "model_type": "timm_wrapper",
        "architecture": timm_name,
        "do_pooling": False,
        "hidden_size": int(trunk.num_features),
        "num_features": int(trunk.num_features),
        "model_args": {"global_pool": "avg"},
    }
    heads = ("head.", "fc.")
    return config, {f"timm_model.{name}": value for name, value in trunk.state_dict().items() if not name.startswith(heads)}


def _export_vit(trunk: Any, contract: InputContract) -> VisionExport:
    """timm's ViT as SigLIP's: same blocks under other names, layer scale folded into the maps before it."""
    if trunk.num_prefix_tokens or not isinstance(trunk.norm_pre, nn.Identity) or trunk.pos_embed is None:
        raise CheckpointRefused(
            "The image tower has a class token or a norm before its blocks, which transformers' SigLIP tower has not. "
            "Export works for ViTs without class token, visformers and ResNets."
        )
    first = trunk.blocks[0]
    if not isinstance(first.attn.q_norm, nn.Identity):
        raise CheckpointRefused("The image tower normalises its queries and keys, which cannot be exported.")
    config = {
        "model_type": "siglip_vision_model",
        "hidden_size": int(trunk.embed_dim),
        "intermediate_size": int(first.mlp.fc1.out_features),
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": int(first.attn.num_heads),
        "image_size": contract.size,
        "patch_size": int(trunk.patch_embed.patch_size[0]),
        "hidden_act": _activation(first.mlp.act),
        "layer_norm_eps": float(first.norm1.eps),
        "vision_use_head": False,
    }
    tensors: dict[str, Tensor] = {
        "embeddings.patch_embedding.weight": trunk.patch_embed.proj.weight,
        "embeddings.patch_embedding.bias": trunk.patch_embed.proj.bias,
        "embeddings.position_embedding.weight": trunk.pos_embed[0],
        **_layer_norm("post_layernorm", trunk.norm, trunk.embed_dim),
    }
    for index, block in enumerate(trunk.blocks):
        tensors.update({f"encoder.layers.{index}.{name}": value for name, value in _vit_block(block).items()})
    return VisionExport(
        "llava",
        "LlavaForConditionalGeneration",
        config,
        {name: value.detach() for name, value in tensors.items()},
        int(trunk.patch_embed.patch_size[0]),
    )


def _vit_block(block: Any) -> dict[str, Tensor]:
    width = block.attn.qkv.in_features
    biases = block.attn.qkv.bias if block.attn.qkv.bias is not None else torch.zeros(3 * width)
    out: dict[str, Tensor] = {}
    for name, weight, bias in zip("qkv", block.attn.qkv.weight.split(width), biases.split(width), strict=True):
        out |= {f"self_attn.{name}_proj.weight": weight, f"self_attn.{name}_proj.bias": bias}
    out |= _scaled("self_attn.out_proj", block.attn.proj, block.ls1)
    out |= {"mlp.fc1.weight": block.mlp.fc1.weight, "mlp.fc1.bias": block.mlp.fc1.bias}
    out |= _scaled("mlp.fc2", block.mlp.fc2, block.ls2)
    return out | _layer_norm("layer_norm1", block.norm1, width) | _layer_norm("layer_norm2", block.norm2, width)


def _scaled(name: str, linear: Any, layer_scale: Any) -> dict[str, Tensor]:
    gamma = getattr(layer_scale, "gamma", None)
    weight, bias = linear.weight, linear.bias
    if gamma is not None:
        weight, bias = weight * gamma[:, None], bias * gamma
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _layer_norm(name: str, norm: Any, width: int) -> dict[str, Tensor]:
    if isinstance(norm, nn.Identity):  # SigLIP always has one; it is not read behind the last block
        return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def _activation(module: nn.Module) -> str:
    if isinstance(module, nn.GELU):
        return "gelu_pytorch_tanh" if module.approximate == "tanh" else "gelu"
    known = {"GELUTanh": "gelu_pytorch_tanh", "GELU": "gelu", "QuickGELU": "quick_gelu", "SiLU": "silu", "ReLU": "relu"}
    name = type(module).__name__
    if name not in known:
        raise CheckpointRefused(f"The image tower's activation {name} has no name in transformers; it cannot be exported.")
    return known[name]


# The processor


def _write_processor(vision: VisionExport, decoder: Decoder, contract: InputContract, tokenizer: Path, out: Path) -> None:
    if contract.resize_mode != "squash":
        raise CheckpointRefused(
            f"The preprocessing resizes by `{contract.resize_mode}`; only `squash` can be written for transformers."
        )
    image = {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": contract.size, "width": contract.size},
        "resample": _RESAMPLE[contract.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(contract.mean),
        "image_std": list(contract.std),
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 0,
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": "full",
    }
    _write_json(out / "preprocessor_config.json", {**image, "processor_class": "LlavaProcessor"})
    _write_json(out / "processor_config.json", processor)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    shutil.copyfile(tokenizer / "tokenizer.json", out / "tokenizer.json")
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"model_max_length": decoder.context, "processor_class": "LlavaProcessor"}
    _write_json(out / "tokenizer_config.json", settings)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
