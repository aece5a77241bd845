"""What a model is worth: loss and bits per byte beside baselines, and the loss on held-out answers."""
