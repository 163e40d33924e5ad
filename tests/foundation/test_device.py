"""A device by name: what is not there is refused, not silently replaced."""

from __future__ import annotations

import pytest
import torch

from foundation.device import autocast_bf16, choose_device, multiplies_bf16
from foundation.errors import InvalidRequest


def test_auto_is_the_best_there_is() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        choose_device(name)


@pytest.mark.parametrize(
    ("capabilities", "has_products"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_products_are_in_bfloat16_only_where_the_processor_has_them(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], has_products: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert multiplies_bf16("cpu") is has_products
    weight = torch.ones(2, 2)
    with autocast_bf16("cpu"):
        assert (weight @ weight).dtype == (torch.bfloat16 if has_products else torch.float32)
    with autocast_bf16(torch.device("cpu"), wanted=False):
        assert (weight @ weight).dtype == torch.float32
