"""infinity-emb over the checkpoint rewritten as a `CLIPModel` folder, the only layout of ours that it opens for pictures.

Its own dtype option reaches picture models on CUDA only, so the open model is cast here; without that it would run the
tower in float32 and be compared with bfloat16.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import uvicorn
from clip_folder import write_clip_folder
from infinity_emb import EngineArgs
from infinity_emb.infinity_server import create_server
from infinity_emb.transformer.vision import torch_vision
from options import Options

NAME = "tower"


def cast_pictures(precision: str) -> None:
    plain_init = torch_vision.TIMM.__init__

    def init(self: Any, **arguments: Any) -> None:
        plain_init(self, **arguments)
        self.model.to(getattr(torch, precision))

    torch_vision.TIMM.__init__ = init


if __name__ == "__main__":
    options = Options.from_command()
    cast_pictures(options.precision)
    with tempfile.TemporaryDirectory() as home:
        folder = write_clip_folder(Path(options.checkpoint), Path(home) / "clip")
        arguments = EngineArgs(
            model_name_or_path=str(folder),
            served_model_name=NAME,
            batch_size=options.batch,
            engine="torch",
            device="cpu",
            bettertransformer=False,
            model_warmup=False,
        )
        app = create_server(engine_args_list=[arguments])
        uvicorn.run(app, host="127.0.0.1", port=options.port, access_log=False, log_level="warning")
