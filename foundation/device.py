"""Where tensors live: the device a person asked for by name, or the best there is; and whether that multiplies bfloat16."""

from __future__ import annotations

import torch

from foundation.errors import InvalidRequest

_CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM, as `torch.cpu.get_capabilities` names them


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """ "auto" is the first CUDA device where there is one, else the CPU; any other name is torch's ("cpu", "cuda:1").

    Raises InvalidRequest for a name that torch does not know and for a CUDA device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidRequest(f"There is no device {str(name)!r}; give auto, cpu, cuda or cuda:N.", param="device") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidRequest(
            f"The device {str(name)!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices. Give auto or cpu.",
            param="device",
        )
    return device


def multiplies_bf16(device: str | torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products. A processor without them takes up to a hundred times as long
    as for float32.
    """
    device = torch.device(device)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _CPU_BF16)
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def autocast_bf16(device: str | torch.device, *, wanted: bool = True) -> torch.autocast:
    """Products in bfloat16 where that is wanted and the device has them, else all in float32."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and multiplies_bf16(device))
