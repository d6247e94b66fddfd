"""Arms against each other on the same positions, with paired statistics."""
