"""Demonstrations: the episode store, recording, replay and dataset formats."""

import s2robot.envs  # noqa: F401 (selects MuJoCo's renderer before anything imports mujoco)
