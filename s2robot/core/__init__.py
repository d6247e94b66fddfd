"""Modules that every package may import: settings, errors, run directories, workers and progress."""
