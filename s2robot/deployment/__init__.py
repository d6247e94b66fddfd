"""A policy on an arm: pre-flight, dry run, live episodes, evaluation and demos there."""
