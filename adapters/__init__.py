"""What makes one backbone many specialists: LoRA, adapter folders, the store, one file per task.

Knows nothing of HTTP or of training loops. May import `foundation` only.
"""
