"""Cameras: one reader thread each, with the newest frame and its time."""
