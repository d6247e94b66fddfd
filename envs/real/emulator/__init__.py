"""An emulator of the UFACTORY xArm7 control box, for the vendor's unmodified SDK on loopback.

Its behaviour follows the SDK's own code and vendor and user issues. Assumptions (answers after a mode change and to NaN,
the collision threshold, dynamics) are marked [assumed] in the code.
"""
