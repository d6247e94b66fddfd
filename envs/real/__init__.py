"""The bridge to a real arm: driver, cameras, safety filter, interpolation, watchdog and control loop.

Nothing here was run on a physical arm. Software stops are no emergency stop: the hardware button is required.
"""
