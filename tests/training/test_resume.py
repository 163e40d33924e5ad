"""A run's state on disk: exact, whole or not at all, and of this recipe or refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foundation.errors import InvalidRequest
from training import resume

RECIPE = {"name": "one", "rate": 1e-3, "stage": {"1": {"size": 64}}, "licences": ("a", "b")}


def save(folder: Path, step: int, *, also: dict[str, Tensor] | None = None) -> None:
    """Every tensor of the state says of which step it is."""
    parts = {name: {"step": torch.tensor([step])} for name in ("learner", "optimizer")}
    resume.save_state(folder, RECIPE, {"step": step}, parts | ({"more": also} if also else {}))


def steps_on_disk(folder: Path) -> set[int]:
    place = resume.read_place(folder)
    assert place is not None
    return {place["step"], *(int(resume.read_part(folder, part)["step"]) for part in ("learner", "optimizer"))}


def test_tensors_and_places_come_back_to_the_bit(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    tensors = {
        "float": torch.tensor([1e-45, -0.0, float("nan"), float("inf")]),
        "half": torch.randn(5).bfloat16(),
        "turned": shared.T,
        "tied": shared,
        "bytes": torch.get_rng_state(),
        "number": torch.tensor(7),
    }
    place = {"value": 0.1 + 0.2, "list": [1, None, "x"]}
    resume.save_state(tmp_path, RECIPE, place, {"more": tensors})
    held = resume.read_part(tmp_path, "more")
    for name, tensor in tensors.items():
        assert held[name].dtype == tensor.dtype
        assert held[name].shape == tensor.shape
        assert torch.equal(held[name].contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8))
    found = resume.read_place(tmp_path)
    assert found is not None
    assert {name: found[name] for name in place} == place


def test_a_run_killed_at_any_moment_leaves_one_whole_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    def dying_after(moves: int) -> Callable[[Path, Path], Path]:
        left = iter(range(moves))

        def move(self: Path, target: Path) -> Path:
            if next(left, None) is None:
                raise Killed
            return plain(self, target)

        return move

    plain = Path.replace
    seen = []
    for moves in range(5):
        folder = tmp_path / str(moves)
        save(folder, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying_after(moves))
            with contextlib.suppress(Killed):
                save(folder, 2)
        (found,) = steps_on_disk(folder)  # one number: nothing is mixed
        seen.append(found)
    assert seen == [1, 2, 2, 2, 2]


def test_what_an_interrupted_save_left_is_not_taken_up_later(tmp_path: Path) -> None:
    save(tmp_path, 1, also={"step": torch.tensor([1])})
    (tmp_path / "more.safetensors.partial").write_bytes(b"half a file")
    save(tmp_path, 2)
    assert int(resume.read_part(tmp_path, "more")["step"]) == 1


def test_an_optimizer_goes_on_as_if_never_stopped() -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        return model, torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    whole, parts = fresh(), fresh()
    for seed in range(6):
        step(*whole, seed)
        if seed < 3:
            step(*parts, seed)
    again = fresh()
    again[0].load_state_dict(parts[0].state_dict())
    held = resume.optimizer_tensors(parts[1], dict(parts[0].named_parameters()))
    assert set(held) >= {"0.weight/exp_avg", "2.bias/max_exp_avg_sq", "2.bias/step"}
    resume.load_optimizer(again[1], dict(again[0].named_parameters()), held)
    for seed in range(3, 6):
        step(*again, seed)
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True))
    with pytest.raises(InvalidRequest, match="which the model lacks"):
        resume.load_optimizer(again[1], {}, held)


def test_another_recipe_is_refused_with_every_difference(tmp_path: Path) -> None:
    save(tmp_path, 1)
    place = resume.read_place(tmp_path)
    assert place is not None
    resume.check_recipe(tmp_path, place["recipe"], RECIPE)
    other = {"name": "one", "rate": 2e-3, "stage": {"1": {"size": 96}, "2": {"size": 1}}, "licences": ("a", "b"), "batch": 4}
    with pytest.raises(InvalidRequest, match=r"another recipe: batch, rate, stage\.1\.size, stage\.2 differ") as refusal:
        resume.check_recipe(tmp_path, place["recipe"], other)
    assert refusal.value.param == "batch"
    with pytest.raises(InvalidRequest, match="2 tensors differ, first 'a'"):
        resume.check_names(tmp_path, ["a", "b"], ["b", "c"])


def test_damage_is_named(tmp_path: Path) -> None:
    assert resume.read_place(tmp_path / "nothing") is None
    save(tmp_path, 1)
    (tmp_path / "learner.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "optimizer.safetensors").unlink()
    for part in ("learner", "optimizer"):
        with pytest.raises(InvalidRequest, match=f"{part}.safetensors .* is missing or damaged"):
            resume.read_part(tmp_path, part)
    (tmp_path / resume.PLACE).write_text("{")
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        resume.read_place(tmp_path)
