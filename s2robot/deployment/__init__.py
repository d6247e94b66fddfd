"""A policy on an arm: pre-flight checks, dry run, live episodes, evaluation and recording."""
