"""Inspect a dataset: an HTML page with videos, curves and anomalies."""
