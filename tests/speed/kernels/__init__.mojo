"""Kernels that measure the machine's two peak rates."""
from .ceilings import *
