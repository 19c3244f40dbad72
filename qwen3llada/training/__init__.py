"""The trainer: optimiser, checkpoints, telemetry, loop."""
