"""Steps, the training loop, and resuming a run."""
