"""The same model under other circumstances: optimisers, activations, compiled, on other devices, by other attention."""
