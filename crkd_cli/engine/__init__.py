"""Training, inference, evaluation and prediction: the only layer that knows devices and run folders."""
