"""Datasets in the formats of LeRobot, robomimic and diffusion_policy; see `convert.convert` and `export.export`."""
