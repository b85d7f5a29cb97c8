"""The layer that runs things: training, inference, evaluation, prediction, checkpoints."""
