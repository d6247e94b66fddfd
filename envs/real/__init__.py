"""The bridge to a real arm, begun: what is asked of a driver, and the safety filter. No arm can be driven yet.

Nothing here was run on a physical arm. Software stops are no emergency stop: the hardware button is required.
"""
