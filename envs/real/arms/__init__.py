"""Arms: the driver's protocol, drivers for xArm and Franka, their geometry."""
