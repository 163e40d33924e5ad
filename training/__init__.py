"""How weights come to be: manifests, datasets, objectives, the loop, evaluation and reports.

Knows nothing of HTTP or of the UI. May import `adapters` and `foundation` only.
"""
