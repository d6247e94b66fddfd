"""An emulator of the UFACTORY xArm7 control box, for the vendor's unmodified SDK on loopback.

What is known of the box comes from the SDK's own code and from vendor and user issues; what had to be assumed
(answers after a mode change, to NaN, the collision threshold, dynamics) is marked [assumed] where it is decided.
"""
