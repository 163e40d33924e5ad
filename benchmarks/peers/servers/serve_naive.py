"""FastAPI as one would first write it: each request decodes and runs the model in a thread of the pool."""

from __future__ import annotations

import uvicorn
from embedder import ROUTE, BrokenFilmError, Embedder, answer, film_in_request
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from options import Options


def create_app(embedder: Embedder) -> FastAPI:
    app = FastAPI()

    def embed(film: bytes) -> list[float]:
        return embedder.embed([embedder.decode(film)])[0]

    @app.post(ROUTE)
    async def embeddings(request: Request) -> JSONResponse:
        try:
            return JSONResponse(answer(await run_in_threadpool(embed, await film_in_request(request))))
        except BrokenFilmError as error:
            raise HTTPException(400, str(error)) from error

    return app


if __name__ == "__main__":
    options = Options.from_command()
    app = create_app(Embedder(options.checkpoint, options.precision))
    uvicorn.run(app, host="127.0.0.1", port=options.port, access_log=False, log_level="warning")
