"""Other people's data sets, read and written: LeRobot, robomimic, diffusion_policy.

`convert.convert` is the door; `found.read` finds out what lies at a path and gives a `source.Source` of it.
"""
