"""Hydra configuration files of every verb, found as package data."""
