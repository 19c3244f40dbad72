"""The steps of a request as CUDA graphs, with kernels of their own."""
