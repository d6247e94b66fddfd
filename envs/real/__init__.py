"""A real arm, or its emulator, behind the interface of the simulated world."""
