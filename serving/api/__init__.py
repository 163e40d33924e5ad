"""The HTTP routes: thin, without torch, speaking to a Gateway only. `app.py` puts them together."""
