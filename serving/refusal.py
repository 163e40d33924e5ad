"""What is said of a film outside what the model was trained for, whoever would have answered."""

from __future__ import annotations


def not_assessed(looks_like: str) -> str:
    shown = f"this looks like {looks_like}" if looks_like else "this is not a film of a kind I know"
    return f"Not assessed: {shown}. I can only answer questions about the films I was trained on."
