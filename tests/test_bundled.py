"""The bundled model as a stranger meets it: its own server, the public `openai` client, plain open_clip, plain transformers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from foundation.checkpoint import open_checkpoint
from foundation.decoder import Decoder
from foundation.export import export_llava
from foundation.phantom import make_phantom
from foundation.preprocess import normalise, render
from foundation.prompt import FindingState, Turn, findings_text
from foundation.readers import read_film
from foundation.sampling import Sampling
from serving.client import Client
from serving.config import ServerConfig
from serving.server import background

BUNDLED = open_checkpoint("bundled").folder
LIMIT_MIB = 40


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def film_with(finding: str, size: int = 256) -> bytes:
    """A phantom that shows this finding and no other."""
    seed = next(n for n in range(20_000_000, 20_001_000) if [one.name for one in make_phantom(n, 64).findings] == [finding])
    return png(make_phantom(seed, size).film)


def head_ct() -> bytes:
    """A real CT slice that pydicom carries for its own tests."""
    from pydicom.data import get_testdata_file

    return Path(str(get_testdata_file("CT_small.dcm", download=False))).read_bytes()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with background(ServerConfig(port=0)) as url:
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found:
        yield found


def question(film: bytes, text: str) -> list[dict[str, Any]]:
    uri = "data:image/png;base64," + base64.b64encode(film).decode()
    return [{"role": "user", "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": uri}}]}]


def test_the_weights_together_are_small_enough_to_carry() -> None:
    library = Path(__file__).parent.parent / "adapters" / "library"
    total = sum(path.stat().st_size for root in (BUNDLED, library) for path in root.rglob("*.safetensors"))
    assert total < LIMIT_MIB * 2**20


def test_plain_open_clip_opens_the_folder_and_embeds_alike() -> None:
    import open_clip

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{BUNDLED}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{BUNDLED}")
    backbone = open_checkpoint("bundled").backbone
    data = film_with("effusion")
    words = ["there is a left effusion", "no effusion"]
    pixels = torch.from_numpy(normalise(render(read_film(data), backbone.contract), backbone.contract))[None]
    with torch.inference_mode():
        plain = model.eval().encode_image(transform(Image.open(io.BytesIO(data)).convert("RGB"))[None], normalize=True)
        torch.testing.assert_close(backbone.encode_image(pixels).embedding, plain, atol=1e-4, rtol=0)
        texts = model.encode_text(tokenizer(words), normalize=True)
        torch.testing.assert_close(backbone.encode_text(words), texts, atol=1e-4, rtol=0)


def test_the_export_answers_the_same_in_plain_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    out = export_llava(BUNDLED, tmp_path / "exported")
    model = AutoModelForImageTextToText.from_pretrained(str(out)).eval()
    processor = AutoProcessor.from_pretrained(str(out))
    backbone, decoder = open_checkpoint("bundled").backbone, Decoder.load(BUNDLED)
    shown = render(read_film(film_with("effusion")), backbone.contract)
    asked = [Turn("user", "Is there an effusion?")]
    stated = [FindingState("effusion", 0.91, True), FindingState("mass", 0.04, False)]
    with torch.inference_mode():
        tokens = backbone.encode_image(torch.from_numpy(normalise(shown, backbone.contract))[None]).tokens[0]
    prompt = decoder.tokenizer.text(decoder.tokenizer.prompt(asked, findings_text(stated), 1))
    inputs = processor(images=Image.fromarray(shown), text=prompt, return_tensors="pt")
    theirs = model.generate(**inputs, max_new_tokens=48)[0, inputs["input_ids"].shape[1] :].tolist()
    ours = list(decoder.generate(asked, stated, tokens, Sampling(max_tokens=48)).token_ids)
    assert len(ours) > 4
    assert theirs[: len(ours)] == ours


def test_the_public_client_lists_embeds_and_chats(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert "cxr-findings" in names
    base = names[0]
    by_default = client.embeddings.create(model=base, input=["pleural effusion", "no pleural effusion"])
    as_float = client.embeddings.create(model=base, input=["pleural effusion", "no pleural effusion"], encoding_format="float")
    np.testing.assert_allclose([one.embedding for one in by_default.data], [one.embedding for one in as_float.data], atol=1e-6)
    film = film_with("effusion")
    asked = question(film, "Is there an effusion?")
    whole = client.chat.completions.create(model=base, messages=asked)
    chunks = list(client.chat.completions.create(model=base, messages=asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert [whole.choices[0].finish_reason, chunks[-1].choices[0].finish_reason] == ["stop", "stop"]
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 3
    assert whole.vesalius["evidence"]["assessed"]


def test_the_public_client_is_told_what_is_wrong(client: openai.OpenAI) -> None:
    base = client.models.list().data[0].id
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nowhere", messages=question(b"", "?"))
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=base, messages=question(b"no picture", "Is there an effusion?"))
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model=base, input=["x" * 8000] * 16_000)
    assert refused.value.status_code == 413


def test_a_head_ct_is_not_answered_with_lungs(address: str) -> None:
    with Client(address) as client:
        ct = head_ct()
        answer = "".join(piece.text for piece in client.ask("Is there an effusion?", film=ct))
        scored = client.zero_shot([ct], ["effusion", "cardiomegaly"]).data[0]
        classified = client.classify([ct], "cxr-findings").data[0]
    assert answer.startswith("Not assessed: this looks like a CT slice")
    assert not scored.assessed
    assert not scored.scores
    assert not classified.assessed
    assert not classified.labels


def test_an_effusion_is_seen_and_its_absence_too(address: str) -> None:
    with Client(address) as client:
        films = [film_with("effusion"), film_with("cardiomegaly")]
        scores = [
            {one.label: one.score for one in item.scores or []}
            for item in client.zero_shot(films, ["effusion", "cardiomegaly"], scoring="pairwise").data
        ]
    assert scores[0]["effusion"] > scores[1]["effusion"] + 0.3
    assert scores[1]["cardiomegaly"] > scores[0]["cardiomegaly"] + 0.3
