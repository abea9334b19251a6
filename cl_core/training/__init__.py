"""Train a method: loop, optimisers, checkpoints, tracking."""
