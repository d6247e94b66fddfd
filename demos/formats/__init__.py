"""Other people's data sets, read: LeRobot, robomimic, diffusion_policy.

`convert.convert` is the door; `found.read` finds out what lies at a path and gives a `source.Source` of it.
"""
