"""Datasets of LeRobot, robomimic and diffusion_policy: `convert.convert` reads one, `export.export` writes one."""
