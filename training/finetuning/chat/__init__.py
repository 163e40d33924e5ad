"""The chat task: films as the decoder gets them, examples, what is trained, scores, and its report."""
