"""What every wing may use: errors, files, paths, progress. A closed list, no drawer."""
