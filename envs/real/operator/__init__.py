"""The operator at the arm: questions, stop, hand guiding, teleoperation."""
