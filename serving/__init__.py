"""From bytes on a socket to a batch on the device: API, decode pool, scheduler, engine, client.

Knows nothing of Gradio or of training. May import `adapters` and `foundation` only.
"""
