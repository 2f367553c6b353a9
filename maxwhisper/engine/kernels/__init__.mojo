"""Our kernels: for the CPU; products for a GPU; and small ones for either."""
