"""Scripted experts for robosuite's worlds."""
