"""The machine's two ceilings."""
from .ceilings import *
