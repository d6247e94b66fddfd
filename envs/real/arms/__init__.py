"""Arms: the driver interface, drivers for xArm, Franka and LeRobot's robots, and arm geometry."""
