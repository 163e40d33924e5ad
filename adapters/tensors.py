"""Read a safetensors file without any arithmetic of torch, so that a thread beside the model's may do it.

A second thread that ever runs a parallel operation of torch slows the first for good; numpy and a view do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, deserialize
from torch import Tensor

from foundation.errors import AdapterRefused

# The number a file names -> how numpy holds it, and how torch calls it where numpy has no such number.
_NUMBERS: Mapping[str, tuple[str, torch.dtype | None]] = {
    "F64": ("<f8", None),
    "F32": ("<f4", None),
    "F16": ("<f2", None),
    "BF16": ("<i2", torch.bfloat16),
    "I64": ("<i8", None),
    "I32": ("<i4", None),
    "I16": ("<i2", None),
    "I8": ("|i1", None),
    "U8": ("|u1", None),
    "BOOL": ("|b1", None),
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file by its name, as stored. Raises AdapterRefused."""
    try:
        found = deserialize(path.read_bytes())
    except (SafetensorError, OSError):
        raise AdapterRefused(f"{path.name} is not a readable safetensors file; copy the adapter again.") from None
    return {name: _tensor(path.name, name, one) for name, one in found}


def as_float32(tensor: Tensor) -> npt.NDArray[np.float32]:
    """The tensor's numbers, converted by numpy; a view where they are float32 already."""
    if tensor.dtype == torch.bfloat16:
        high = tensor.view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
        return (high << 16).view(np.float32)
    return tensor.numpy().astype(np.float32, copy=False)


def _tensor(file: str, name: str, stored: Mapping[str, Any]) -> Tensor:
    number = _NUMBERS.get(str(stored["dtype"]))
    if number is None:
        raise AdapterRefused(f"{file}: the tensor {name!r} holds {stored['dtype']} numbers, which are not read.")
    array = np.array(np.frombuffer(stored["data"], number[0])).reshape(tuple(stored["shape"]))
    tensor = torch.from_numpy(array)
    return tensor if number[1] is None else tensor.view(number[1])
