"""Text from a trained model: sampling from logits, and generation."""
