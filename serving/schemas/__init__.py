"""What callers send and get, as strict pydantic models: one file a route family.

Knows nothing of the model nor of films' contents. `parsing.py` turns a bad body into one sentence that
names the field.
"""
