"""The 12 B geometry with random weights: seconds and memory on a GPU, never quality."""
