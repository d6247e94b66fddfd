"""The person at the arm: operator, leading by hand, teleoperation."""
