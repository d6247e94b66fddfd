"""Comparisons of arms on the same positions, with paired statistics."""
