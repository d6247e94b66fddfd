"""Evaluation of policies over seeded positions: rollouts, episode records, journal, videos and report."""
