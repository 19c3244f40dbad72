"""The model: Qwen3's layers seen from both sides, conversion and comparison of checkpoints."""
