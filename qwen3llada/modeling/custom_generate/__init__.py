"""What Transformers runs as a checkpoint's `generate` (`custom_generate/generate.py` beside the weights)."""
