"""Telemetry of a run: curves, speed, memory."""
