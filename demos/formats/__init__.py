"""Datasets of LeRobot, robomimic and diffusion_policy.

`convert.convert` reads one into a store, `export.export` writes a store as one; every reader is a `source.Source`.
"""
