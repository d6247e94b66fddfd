"""Vision models: MVP's ViT and checkpoints, adapters for other libraries, and preparation for inference."""
