"""From a manifest to an adapter with an honest card: what tasks share, and a folder for each task."""
