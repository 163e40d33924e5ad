"""Where tensors live: the device a person asked for by name, or the best there is."""

from __future__ import annotations

import torch

from foundation.errors import InvalidRequest


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
