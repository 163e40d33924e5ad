"""The decoder: conversations written from what is stated of a film, the course it is taught by, and its exam."""
