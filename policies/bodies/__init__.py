"""Networks that encode the context: pooled images, states and past actions to one vector per step."""
