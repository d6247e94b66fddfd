"""The control loop and what keeps it safe: filter, watchdog, supervisor, interpolation."""
