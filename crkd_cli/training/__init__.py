"""Training: from a request to a finished run folder. Nothing else knows optimizers or the loop."""
