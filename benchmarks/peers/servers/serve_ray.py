"""Ray Serve on this machine alone: one replica, each request by itself, or with --batch above 1 through `@serve.batch`."""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import Any

os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else 127.0.0.1 becomes the address that others reach this machine by
    "RAY_raylet_start_wait_time_s": "240",  # a busy machine
    "RAY_worker_niceness": "0",  # its own 15 would let the clients on the same machine go first
}

import ray
from embedder import BrokenFilmError, Embedder, Pixels, answer, film_in_request
from options import Options
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

BATCH_WAIT_S = 0.005
ONGOING = 128


@serve.deployment(num_replicas=1, max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 1})
class Embeddings:
    def __init__(self, options: Options) -> None:
        self.embedder = Embedder(options.checkpoint, options.precision)
        self.batched.set_max_batch_size(options.batch)
        self.is_batched = options.batch > 1

    async def __call__(self, request: Request) -> JSONResponse:
        try:
            pixels = self.embedder.decode(await film_in_request(request))
        except BrokenFilmError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        vector = await self.batched(pixels) if self.is_batched else self.embedder.embed([pixels])[0]
        return JSONResponse(answer(vector))

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=BATCH_WAIT_S)
    async def batched(self, pixels: list[Pixels]) -> list[Any]:
        return self.embedder.embed(pixels)


async def forever() -> None:
    await asyncio.Event().wait()


if __name__ == "__main__":
    options = Options.from_command()
    environment = {"env_vars": {name: os.environ[name] for name in ("PYTHONPATH",)}}
    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False, runtime_env=environment)
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    serve.run(Embeddings.bind(options), route_prefix="/v1/embeddings")
    asyncio.run(forever())
