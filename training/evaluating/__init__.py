"""What a checkpoint or adapter is worth on a split: the command, and the checks that only an evaluation runs."""
