"""Our kernels, for the CPU: what a decoder's step is made of, where MAX's own are slow for few rows."""
