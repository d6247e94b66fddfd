"""s2robot: S2 features of frozen MVP encoders for robot policies that learn from demonstrations."""

__version__ = "0.1.0"
