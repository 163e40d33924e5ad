"""What a person touches: the command line and the chat page. May import every other folder."""
