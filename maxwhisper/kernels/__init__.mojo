"""Our kernels, for the CPU."""
