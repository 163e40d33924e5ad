"""Transformer blocks whose every linear map is a plain `nn.Linear`, and their conversion from other layouts.

    Block   x -> x + scale1(attn(norm1(x))) -> x + scale2(mlp(norm2(x)))
              attn.qkv, attn.proj, mlp.fc1, mlp.fc2 : nn.Linear      (what LoRA adapts, what a mixed batch can serve)

    Bottleneck   x -> relu(conv3(relu(conv2(relu(conv1(x))))) + shortcut(x))        conv1, conv3, shortcut : nn.Linear

Three layouts are converted, with outputs equal up to float32 rounding:

    open_clip ResidualAttentionBlock   nn.MultiheadAttention -> qkv, proj
    timm visformer Block               1x1 convolutions, BatchNorm2d on (B, D, H, W) -> linear maps on (B, N, D)
    timm ResNet Bottleneck             the same; BatchNorms folded into the maps before them, conv2 stays a convolution

timm's ViT blocks already have this shape and are used as they are. The towers around them stand in `towers/`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from foundation.errors import CheckpointRefused


class ChannelAffine(nn.Module):
    """`x * weight + bias` over the last axis: a BatchNorm in evaluation mode, its statistics folded in."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> ChannelAffine:
        """Fold in float64, so that only the last rounding differs from the BatchNorm."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = norm.bias.detach().double() - norm.running_mean.double() * scale
        return cls(scale.to(norm.weight.dtype), shift.to(norm.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class PatchConv2d(nn.Conv2d):
    """A convolution whose stride is its kernel, computed as one linear map over the patches; same names, same numbers.

    NOTE: the plain one returns noise in bfloat16 for 16 input channels and 4x4 kernels (visformer_tiny's first patches)
    on CPUs with AMX: oneDNN, as of torch 2.15, reads every second weight from the wrong place. Its backward does not,
    so training under autocast through it never learns.
    """

    @classmethod
    def around(cls, source: nn.Conv2d) -> PatchConv2d:
        """The same weights, shared."""
        made = cls(source.in_channels, source.out_channels, source.kernel_size, source.stride, bias=False, device="meta")  # type: ignore[arg-type]
        made.weight, made.bias = source.weight, source.bias
        return made.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / k, W / k); H and W must be multiples of k."""
        B, C, H, W = x.shape
        rows, columns = self.kernel_size
        patches = x.reshape(B, C, H // rows, rows, W // columns, columns).permute(0, 2, 4, 1, 3, 5)
        made = F.linear(patches.reshape(B, H // rows, W // columns, -1), self.weight.flatten(1), self.bias)
        return made.permute(0, 3, 1, 2)


def use_patch_convolutions(module: nn.Module) -> None:
    """Replace, in place, every convolution whose stride is its kernel; names in the state dict do not change."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Conv2d and child.stride == child.kernel_size != (1, 1):
            if child.padding == (0, 0) and child.dilation == (1, 1) and child.groups == 1:
                setattr(module, name, PatchConv2d.around(child))
        else:
            use_patch_convolutions(child)


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, D)."""

    def __init__(self, qkv: nn.Linear, proj: nn.Linear, num_heads: int) -> None:
        super().__init__()
        self.qkv = qkv
        self.proj = proj
        self.num_heads = num_heads

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """attn_mask: additive, broadcastable to (B, heads, N, N), or open_clip's (B * heads, N, N)."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if attn_mask is not None:
            attn_mask = attn_mask.to(q.dtype)
            if attn_mask.ndim == 3:
                attn_mask = attn_mask.reshape(B, self.num_heads, N, N)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(B, N, -1))
        return projected


class Mlp(nn.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, fc1: nn.Linear, activation: nn.Module, fc2: nn.Linear) -> None:
        super().__init__()
        self.fc1 = fc1
        self.act = activation
        self.fc2 = fc2

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """A pre-norm transformer block; `ls1` and `ls2` are layer scales or identities."""

    def __init__(
        self,
        norm1: nn.Module,
        attn: Attention,
        norm2: nn.Module,
        mlp: Mlp,
        ls1: nn.Module | None = None,
        ls2: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = norm1
        self.attn = attn
        self.ls1 = ls1 or nn.Identity()
        self.norm2 = norm2
        self.mlp = mlp
        self.ls2 = ls2 or nn.Identity()

    def forward(
        self, x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """The signature is open_clip's, so that its own Transformer can run these blocks; k_x and v_x stay None."""
        if k_x is not None or v_x is not None:
            raise AssertionError("cross-attention is not rewritten")
        x = x + self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask))
        x = x + self.ls2(self.mlp(self.norm2(x)))
        return x

    def get_weight_dtype(self) -> torch.dtype:
        """open_clip's text tower asks its first block for the dtype to compute in."""
        return next(self.norm1.parameters()).dtype


class Bottleneck(nn.Module):
    """A ResNet bottleneck over the positions of a square map, (B, h * h, D) -> (B, h' * h', D'), h' being h or h / 2.

    BatchNorms are folded away, so the block is the same in training and in evaluation.
    """

    def __init__(
        self, conv1: nn.Linear, conv2: nn.Conv2d, conv3: nn.Linear, shortcut: nn.Linear | None, shrink: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2
        self.conv3 = conv3
        self.shortcut = shortcut
        self.shrink = shrink  # what halves the map before the shortcut

    @property
    def stride(self) -> int:
        return self.conv2.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.conv2(_as_square(F.relu(self.conv1(x)))))
        kept = x if self.shrink is None else _as_positions(self.shrink(_as_square(x)))
        kept = kept if self.shortcut is None else self.shortcut(kept)
        return F.relu(self.conv3(_as_positions(inner)) + kept)


def _as_square(x: Tensor) -> Tensor:
    """(B, h * h, D) -> (B, D, h, h)"""
    side = math.isqrt(x.shape[1])
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], side, side)


def _as_positions(maps: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h * w, D)"""
    return maps.flatten(2).transpose(1, 2)


def linear_from(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An `nn.Linear` that owns a copy of `weight` (out, in) and `bias` (out)."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def block_from_open_clip(source: Any) -> Block:
    """Rewrite open_clip's ResidualAttentionBlock; any other kind of block is refused."""
    attention = getattr(source, "attn", None)
    if not isinstance(attention, nn.MultiheadAttention) or hasattr(source, "ln_1_kv"):
        raise CheckpointRefused(
            f"The tower has a transformer block of kind {type(source).__name__}, which is not supported. "
            "Use a checkpoint whose open_clip config has the default block type.",
            param="block_type",
        )
    assert attention.in_proj_weight is not None
    assert attention.batch_first
    return Block(
        norm1=source.ln_1,
        attn=Attention(
            linear_from(attention.in_proj_weight, attention.in_proj_bias),
            linear_from(attention.out_proj.weight, attention.out_proj.bias),
            attention.num_heads,
        ),
        ls1=source.ls_1,
        norm2=source.ln_2,
        mlp=Mlp(source.mlp.c_fc, source.mlp.gelu, source.mlp.c_proj),
        ls2=source.ls_2,
    )


def block_from_visformer(source: Any) -> Block:
    """Rewrite a visformer attention block: its 1x1 convolutions are linear maps over the channels of each position."""
    attention, mlp = source.attn, source.mlp
    if mlp.conv2 is not None:
        raise CheckpointRefused(
            "The visformer has a spatial convolution in an attention block's MLP, which is not supported. "
            "Use visformer_tiny or visformer_small.",
            param="timm_model_name",
        )
    return Block(
        norm1=ChannelAffine.from_batch_norm(source.norm1),
        attn=Attention(_linear_from_conv(attention.qkv), _linear_from_conv(attention.proj), attention.num_heads),
        norm2=ChannelAffine.from_batch_norm(source.norm2),
        mlp=Mlp(_linear_from_conv(mlp.conv1), mlp.act1, _linear_from_conv(mlp.conv3)),
    )


def block_from_bottleneck(source: Any) -> Bottleneck:
    """Rewrite a timm Bottleneck in evaluation mode; one with squeeze-and-excitation or anti-aliasing is refused."""
    if type(source).__name__ != "Bottleneck" or source.se is not None or not isinstance(source.aa, nn.Identity):
        raise CheckpointRefused(
            f"The ResNet has a block of kind {type(source).__name__} with extras, which is not supported. "
            "Use a plain bottleneck ResNet such as resnet14t, resnet26 or resnet50.",
            param="timm_model_name",
        )
    shortcut, shrink = _shortcut(source.downsample)
    return Bottleneck(
        _linear_from_conv(fused(source.conv1, source.bn1)),
        fused(source.conv2, source.bn2),
        _linear_from_conv(fused(source.conv3, source.bn3)),
        shortcut,
        shrink,
    )


def _shortcut(downsample: Any) -> tuple[nn.Linear | None, nn.Module | None]:
    """timm's downsample branch as a linear map, and what halves the map before it."""
    if downsample is None:
        return None, None
    *before, convolution, norm = downsample
    shrink = before[0] if before and not isinstance(before[0], nn.Identity) else None
    if convolution.stride != (1, 1):
        shrink, plain = nn.AvgPool2d(1, convolution.stride[0]), copy.deepcopy(convolution)  # every second position
        plain.stride = (1, 1)
        convolution = plain
    return _linear_from_conv(fused(convolution, norm)), shrink


def fused(convolution: object, norm: object) -> nn.Conv2d:
    """Convolution and BatchNorm as one convolution; a missing norm (Identity) leaves the convolution as it is."""
    assert isinstance(convolution, nn.Conv2d)
    if isinstance(norm, nn.Identity):
        return convolution
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        return fuse_conv_bn_eval(convolution.eval(), norm.eval())


def _linear_from_conv(convolution: object) -> nn.Linear:
    assert isinstance(convolution, nn.Conv2d)
    assert (convolution.kernel_size, convolution.groups) == ((1, 1), 1)
    return linear_from(convolution.weight.flatten(1), convolution.bias)


def frozen_norms(stage: nn.Module) -> Any:
    """Replace each BatchNorm2d by timm's frozen one, whose statistics never move."""
    from timm.layers import freeze_batch_norm_2d

    return freeze_batch_norm_2d(stage)
