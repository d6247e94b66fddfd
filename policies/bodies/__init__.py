"""Networks that read the context: pooled images, states and past actions in, one vector a step out."""
