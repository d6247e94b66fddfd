"""Vision models: MVP's ViT and checkpoints, what a foreign model is, and its preparation for inference."""
