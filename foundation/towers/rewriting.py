"""From an open_clip model's image tower to the family that rewrites it."""

from __future__ import annotations

from typing import Any

from foundation.errors import CheckpointRefused
from foundation.towers.open_clip_vit import OpenClipTower
from foundation.towers.resnet import ResNetTower
from foundation.towers.tower import ImageTower
from foundation.towers.visformer import VisformerTower
from foundation.towers.vit import ViTTower


def image_tower(visual: Any) -> ImageTower:
    """Rewrite the image tower of an open_clip model in evaluation mode; `visual` is taken apart, not to be reused."""
    import open_clip.transformer
    import timm.models.resnet
    import timm.models.visformer
    import timm.models.vision_transformer

    trunk = getattr(visual, "trunk", None)
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return OpenClipTower(visual)
    if isinstance(trunk, timm.models.vision_transformer.VisionTransformer):
        return ViTTower(visual)
    if isinstance(trunk, timm.models.visformer.Visformer):
        return VisformerTower(visual)
    if isinstance(trunk, timm.models.resnet.ResNet):
        return ResNetTower(visual)
    raise CheckpointRefused(
        f"The image tower is a {type(trunk or visual).__name__}, which is not supported. "
        "Use a checkpoint with a Vision Transformer (open_clip or timm), a visformer or a bottleneck ResNet (timm).",
        param="vision_cfg",
    )
