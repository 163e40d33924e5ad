"""LitServe with its own batching: its worker decodes, batches and forwards; a decoding error is the batch's, as documented."""

from typing import Any

import litserve
from embedder import ROUTE, BrokenFilmError, Embedder, Pixels, answer, film_in_json
from fastapi import HTTPException, Request
from options import Options

BATCH_TIMEOUT_S = 0.005


class Embeddings(litserve.LitAPI):
    def __init__(self, options: Options) -> None:
        super().__init__(max_batch_size=options.batch, batch_timeout=BATCH_TIMEOUT_S, api_path=ROUTE)
        self.options = options

    def setup(self, device: str) -> None:
        self.embedder = Embedder(self.options.checkpoint, self.options.precision)

    def decode_request(self, request: Request) -> Pixels:
        """request: what LitServe made of the body, a dict of JSON or a form."""
        body: Any = request
        try:
            film = body["file"].file.read() if "file" in body else film_in_json(body)
            return self.embedder.decode(film)
        except BrokenFilmError as error:
            raise HTTPException(400, str(error)) from error

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        return inputs

    def predict(self, x: list[Pixels]) -> list[list[float]]:
        return self.embedder.embed(x)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        return answer(output)


if __name__ == "__main__":
    options = Options.from_command()
    server = litserve.LitServer(Embeddings(options), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False, access_log=False)
