"""The classification task: labels, losses, the trained tower and head, and the run that makes an adapter."""
