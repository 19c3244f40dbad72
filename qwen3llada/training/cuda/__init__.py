"""CUDA graphs and kernels for training."""
