"""Mojo kernels: for the CPU, matrix products for GPUs, and small kernels for both."""
