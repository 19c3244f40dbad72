"""The built-in source: a generated world and a tiny Qwen3 checkpoint."""
