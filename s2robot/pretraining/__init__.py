"""An encoder of one's own: rendered scenes, banks of frames, masked autoencoding."""
