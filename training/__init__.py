"""Training: model files over shared layers, the engine that trains them, and what is done with the weights after."""
