"""Pre-train your own encoder: rendered scenes, frame banks and masked autoencoding."""
