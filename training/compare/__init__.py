"""The same model under other circumstances: optimizers, activations, compiled, on other devices, by other attention."""
