"""Success over seeded positions: rollouts, their records, journal, videos and report."""
