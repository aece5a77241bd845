"""Training: model files over shared layers, the training engine, and the commands that use the trained weights."""
