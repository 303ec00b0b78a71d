"""fit: the training loop, its checkpoints and reports."""
