"""From films and sentences to a checkpoint that can be served: towers, text (`text/`), decoder (`decoder/`)."""
