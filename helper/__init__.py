"""What every run shares: options, the loop, the teacher, checkpoints, logs, precision."""
