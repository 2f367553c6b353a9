"""Kernels of a decoding step, and the encoder's attention, on NVIDIA GPUs.

Those of a step compute in float32, whatever the dtype of weights and caches. Shapes in their
docstrings are of row-major arrays. `n_rows` counts tokens: those of one sequence are consecutive.
"""
