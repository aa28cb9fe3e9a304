"""Training: config, losses, step, loop, checkpoints."""
