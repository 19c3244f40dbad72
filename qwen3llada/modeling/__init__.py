"""The model: Qwen3's layers with bidirectional attention; conversion and comparison of checkpoints."""
