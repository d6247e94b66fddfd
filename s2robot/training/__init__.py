"""Behaviour cloning on cached features."""
