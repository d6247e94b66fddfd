"""What reads the context: pooled images, states and past actions of some steps in, one vector a step out."""
