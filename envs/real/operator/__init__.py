"""The person at the arm: questions, stop, hand guiding, teleoperation."""
