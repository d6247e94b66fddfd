"""A policy on another machine than the robot: wire, server, client."""
