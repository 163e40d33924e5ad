"""What the model is and what it eats: films, preprocessing, the backbone, the decoder, checkpoints.

Knows nothing of adapters, HTTP or training. Nothing heavy is imported here; take what you need from the module that holds it.
"""
