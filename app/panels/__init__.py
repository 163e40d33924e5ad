"""One file a panel. Each has a class without Gradio that does the work, and a `build_...` that draws the controls."""
