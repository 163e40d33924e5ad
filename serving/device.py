"""Where an engine computes, as its config says."""

from __future__ import annotations

import torch

from serving.config import EngineConfig


def take_device(config: EngineConfig) -> str:
    """The device by name, "auto" being CUDA where there is one. Sets torch's threads in this process."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"
