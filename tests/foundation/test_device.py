"""A device by name: what is not there is refused, not silently replaced."""

from __future__ import annotations

import pytest
import torch

from foundation.device import choose_device
from foundation.errors import InvalidRequest


def test_auto_is_the_best_there_is() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        choose_device(name)
