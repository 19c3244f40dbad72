"""What a run tells: curves, speed, memory."""
