"""The text tower: its corpus, its words, the teacher it is distilled from, and the course."""
