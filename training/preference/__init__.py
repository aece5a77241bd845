"""Learning from preferences: the loss over pairs of answers, and the reference that it compares the model with."""
