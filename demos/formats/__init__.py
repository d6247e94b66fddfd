"""Other people's data sets, read and written: LeRobot, robomimic, diffusion_policy.

`convert.convert` is the door in, `export.export` the one out; `found.read` finds out what lies at a path and gives a
`source.Source` of it.
"""
