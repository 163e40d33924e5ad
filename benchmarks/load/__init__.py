"""Load over real HTTP against the bare model: `python -m benchmarks.load`; see `__main__.py`."""
