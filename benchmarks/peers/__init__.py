"""Vesalius beside other servers, all serving the same model: `python -m benchmarks.peers`; see `__main__.py`."""
