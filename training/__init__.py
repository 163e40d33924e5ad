"""How weights come to be: manifests, measures, trust, pretraining, fine-tuning and evaluation, in this order of imports.

Knows nothing of HTTP or of the UI. May import `adapters` and `foundation` only.
"""
