"""Checkpoint folders: opened offline from anywhere, written and read back, held to their passport, refused by name."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.checkpoint import build_open_clip, open_checkpoint, read_config, save_checkpoint, write_passport
from foundation.errors import CheckpointNotFound, CheckpointRefused
from foundation.passport import Passport
from foundation.sources import BUNDLED
from foundation.tiny import LAYOUTS, make_tiny_checkpoint

WEIGHTS, CONFIG, PASSPORT = "open_clip_model.safetensors", "open_clip_config.json", "passport.json"
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("pristine") / "checkpoint")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the network was asked")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_opens_without_network_from_any_directory(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_checkpoint(tmp_path / "made", layout)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for where in (folder, "../made"):
        checkpoint = open_checkpoint(where)
        assert checkpoint.backbone.encode_text(["normal heart"]).shape == (1, checkpoint.backbone.embed_dim)
    assert checkpoint.passport.tensors_bound == len(load_file(folder / WEIGHTS))
    assert set(checkpoint.passport.files) == {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("layout", ["resnet", "visformer", "open_clip"])
def test_a_saved_model_opens_here_and_in_open_clip(layout: str, tmp_path: Path) -> None:
    import open_clip

    made = make_tiny_checkpoint(tmp_path / "made", layout)
    config = read_config(made)
    model = build_open_clip(config)
    model.load_state_dict(load_file(made / WEIGHTS))
    save_checkpoint(model, config, made, tmp_path / "saved")
    kinds = {(tensor.ndim > 1, tensor.dtype) for tensor in load_file(tmp_path / "saved" / WEIGHTS).values()}
    assert kinds - {(False, torch.int64)} == {(True, torch.float16), (False, torch.float32)}
    plain = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'saved'}", return_transform=False).eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'saved'}")
    ours = open_checkpoint(tmp_path / "saved").backbone
    with torch.no_grad():
        expected = plain.encode_text(tokenizer(["a nodule"]), normalize=True)
        torch.testing.assert_close(ours.encode_text(["a nodule"]), expected, atol=1e-5, rtol=0)
        pixels = torch.randn(1, 3, ours.contract.size, ours.contract.size)
        expected = plain.encode_image(pixels, normalize=True)
        torch.testing.assert_close(ours.encode_image(pixels).embedding, expected, atol=1e-5, rtol=0)


def test_a_tokenizer_must_be_named_when_saving(folder: Path, tmp_path: Path) -> None:
    config = read_config(folder)
    model = build_open_clip(config)
    del config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    with pytest.raises(CheckpointRefused, match="hf_tokenizer_name"):
        save_checkpoint(model, config, folder, tmp_path / "saved")


@pytest.mark.usefixtures("no_network")
def test_a_hub_checkpoint_opens_from_the_cache_and_foreign_files_are_not_read(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(pristine, snapshot)
    (snapshot / "open_clip_pytorch_model.bin").write_bytes(b"cos\nsystem\n")  # left by another program
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    checkpoint = open_checkpoint("hf-hub:someone/tiny")
    assert checkpoint.passport.smoke == open_checkpoint(pristine).passport.smoke


def test_a_hub_checkpoint_that_is_not_cached_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointNotFound, match="someone/absent"):
        open_checkpoint("hf-hub:someone/absent")


def test_the_bundled_checkpoint_opens_as_in_open_clip() -> None:
    if not (BUNDLED / WEIGHTS).is_file():
        pytest.skip("the bundled weights are not in this checkout")
    import open_clip

    plain = open_clip.create_model_from_pretrained(f"local-dir:{BUNDLED}", return_transform=False).eval()
    tokenizer, ours = open_clip.get_tokenizer(f"local-dir:{BUNDLED}"), open_checkpoint("bundled").backbone
    with torch.no_grad():
        pixels = torch.randn(2, 3, ours.contract.size, ours.contract.size)
        expected = plain.encode_image(pixels, normalize=True)
        torch.testing.assert_close(ours.encode_image(pixels).embedding, expected, atol=1e-5, rtol=0)
        expected = plain.encode_text(tokenizer(["left pleural effusion"]), normalize=True)
        torch.testing.assert_close(ours.encode_text(["left pleural effusion"]), expected, atol=1e-5, rtol=0)


# what is refused --------------------------------------------------------------------------------------------------

BLOCK_WEIGHT = "visual.transformer.resblocks.0.mlp.c_fc.weight"
REFUSED: dict[str, tuple[Damage, str]] = {
    "extra tensor": (lambda f: edit_tensors(f / WEIGHTS, lambda t: t.update(visitor=torch.ones(2))), "visitor"),
    "missing tensor": (lambda f: edit_tensors(f / WEIGHTS, lambda t: t.pop(BLOCK_WEIGHT)), BLOCK_WEIGHT),
    "misshapen tensor": (
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t.update({BLOCK_WEIGHT: t[BLOCK_WEIGHT].T.contiguous()})),
        BLOCK_WEIGHT,
    ),
    "not a number": (lambda f: edit_tensors(f / WEIGHTS, lambda t: t["visual.proj"].fill_(torch.nan)), "proj"),
    "truncated weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), WEIGHTS),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    "pickle .bin": (lambda f: (f / "open_clip_pytorch_model.bin").write_bytes(b"x"), "open_clip_pytorch_model.bin"),
    "pickle .pt": (lambda f: (f / "more.pt").write_bytes(b"x"), "more.pt"),
    "pickle below": (lambda f: ((f / "decoder").mkdir(), (f / "decoder" / "a.pkl").write_bytes(b"x")), "decoder/a.pkl"),
    "python": (lambda f: (f / "modeling.py").write_text("print(1)"), "modeling.py"),
    "auto_map": (lambda f: (f / "config.json").write_text('{"auto_map": {"AutoModel": "m.M"}}'), "auto_map"),
    "inner key": (
        lambda f: edit_json(f / "tokenizer_config.json", lambda c: c.update(x=[{"trust_remote_code": True}])),
        "trust_remote_code",
    ),
    "attention code": (
        lambda f: (f / "config.json").write_text('{"_attn_implementation_internal": "someone/kernel"}'),
        "_attn_implementation_internal",
    ),
    "broken JSON": (lambda f: (f / CONFIG).write_text("{"), CONFIG),
    "no model_cfg": (lambda f: (f / CONFIG).write_text("{}"), "model_cfg"),
    "unknown option": (
        lambda f: edit_json(f / CONFIG, lambda c: c["model_cfg"]["vision_cfg"].update(colour="blue")),
        CONFIG,
    ),
    "no tokenizer named": (
        lambda f: edit_json(f / CONFIG, lambda c: c["model_cfg"]["text_cfg"].pop("hf_tokenizer_name")),
        "hf_tokenizer_name",
    ),
    "no tokenizer files": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "tokenizer_config.json",
    ),
    "no padding token": (
        lambda f: edit_json(f / "tokenizer_config.json", lambda c: c.pop("pad_token")),
        "pad_token",
    ),
    "CoCa": (lambda f: edit_json(f / CONFIG, lambda c: c["model_cfg"].update(multimodal_cfg={})), "CoCa"),
}


def assert_refused_after(act: Damage, named: str, folder: Path) -> None:
    """The refusal names what was done to the folder."""
    act(folder)
    with pytest.raises(CheckpointRefused) as refusal:
        open_checkpoint(folder)
    assert named in refusal.value.message + str(refusal.value.param)


@pytest.mark.parametrize("damage", REFUSED)
def test_what_does_not_belong_is_refused_by_name(damage: str, folder: Path) -> None:
    act, named = REFUSED[damage]
    assert_refused_after(act, named, folder)


def test_an_absent_folder_or_config_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no checkpoint folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointNotFound, match=CONFIG):
        open_checkpoint(tmp_path)


def test_a_bert_config_must_be_in_the_folder(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, "biomedclip")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointRefused, match=r"holds no config\.json"):
        open_checkpoint(folder)


def test_stray_position_ids_are_tolerated(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, "biomedclip")
    stray = {"text.transformer.embeddings.position_ids": torch.arange(64)[None]}
    before = open_checkpoint(folder).passport
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors.update(stray))
    after = open_checkpoint(folder).passport
    assert after.smoke == before.smoke
    assert after.tensors_bound == before.tensors_bound


# passports --------------------------------------------------------------------------------------------------------


def test_a_passport_is_written_read_back_and_kept_to(folder: Path) -> None:
    written = write_passport(folder, "Apache-2.0")
    assert Passport.from_json(json.loads((folder / PASSPORT).read_text())) == written
    opened = open_checkpoint(folder).passport
    assert opened.licence == "Apache-2.0"
    assert opened.files == written.files
    assert len(opened.smoke.image) == len(opened.smoke.text) == 8


UNFAITHFUL: dict[str, tuple[Damage, str]] = {
    "changed file": (lambda f: (f / CONFIG).write_text((f / CONFIG).read_text() + "\n"), CONFIG),
    "missing file": (lambda f: edit_json(f / PASSPORT, lambda p: p["files"].update({"a.txt": "0" * 64})), "a.txt"),
    "unlisted file": (lambda f: (f / "notes.txt").write_text("x"), "notes.txt"),
    "other image": (lambda f: edit_json(f / PASSPORT, lambda p: p["smoke"]["image"].__setitem__(3, 0.9)), "numbers"),
    "other text": (lambda f: edit_json(f / PASSPORT, lambda p: p["smoke"]["text"].__setitem__(0, 0.9)), "numbers"),
    "not a number": (lambda f: edit_json(f / PASSPORT, lambda p: p["smoke"].update(image=["a"] * 8)), PASSPORT),
    "unknown field": (lambda f: edit_json(f / PASSPORT, lambda p: p.update(mood="good")), "mood"),
    "lost field": (lambda f: edit_json(f / PASSPORT, lambda p: p.pop("files")), "files"),
    "tensor count": (lambda f: edit_json(f / PASSPORT, lambda p: p.update(tensors_bound=1)), "tensors_bound"),
}


@pytest.mark.parametrize("damage", UNFAITHFUL)
def test_a_checkpoint_that_differs_from_its_passport_is_refused(damage: str, folder: Path) -> None:
    write_passport(folder, "Apache-2.0")
    act, named = UNFAITHFUL[damage]
    assert_refused_after(act, named, folder)


def test_the_fingerprint_follows_weights_and_config_not_their_spelling(folder: Path) -> None:
    first = open_checkpoint(folder).backbone.fingerprint
    (folder / CONFIG).write_text(json.dumps(read_config(folder), indent=7, sort_keys=True))
    assert open_checkpoint(folder).backbone.fingerprint == first
    edit_json(folder / CONFIG, lambda config: config["preprocess_cfg"].update(mean=[0.4] * 3))
    second = open_checkpoint(folder).backbone.fingerprint
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors["visual.proj"].add_(1e-3))
    third = open_checkpoint(folder).backbone.fingerprint
    assert len({first, second, third}) == 3


def test_the_licence_of_a_model_card_is_stated(folder: Path) -> None:
    assert open_checkpoint(folder).passport.licence == "unknown"
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert open_checkpoint(folder).passport.licence == "mit"
