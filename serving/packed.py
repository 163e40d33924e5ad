"""PackedLinear: a linear layer in bfloat16 on a processor, its weight also laid out once as the matrix unit wants it.

torch lays a plain weight out anew in every call, and copies the bias into the result before it multiplies. A layer is
packed only where the packed one answers a sample as the plain one does, to the bit. The weight itself stays, for whoever
reads it (adapters in a mixed batch, gradients). NOTE: a weight must not change once it is packed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SAMPLE_ROWS = 256


class PackedLinear(nn.Linear):
    """The same weight and bias as the layer it is made of, shared."""

    _packed: Tensor

    @classmethod
    def around(cls, source: nn.Linear) -> PackedLinear:
        made = cls(source.in_features, source.out_features, bias=False, device="meta")
        made.weight, made.bias = source.weight, source.bias
        made._packed = torch.ops.mkldnn._reorder_linear_weight(source.weight.detach(), _SAMPLE_ROWS)
        return made.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16 or torch.is_grad_enabled():
            return super().forward(x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


@torch.inference_mode()
def pack_linears(module: nn.Module) -> int:
    """Replace, in place, every linear layer that packing leaves as it is; returns how many. Names do not change."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return 0
    count = 0
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype == torch.bfloat16:
                packed = PackedLinear.around(child)
                sample = torch.randn(_SAMPLE_ROWS, child.in_features, dtype=torch.bfloat16, generator=torch.Generator())
                if torch.equal(packed(sample), child(sample)):
                    setattr(owner, name, packed)
                    count += 1
    return count
