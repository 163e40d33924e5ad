"""One file per task: the head (features -> raw outputs), the result type, the post-processing."""
