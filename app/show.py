"""Show: how a command answers, with a value for `--json` and the text a person reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Show = Callable[[Any, str], None]
