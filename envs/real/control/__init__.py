"""The control loop, interpolation, and the safety layer: filter, watchdog and supervisor."""
