"""Differences between the versions of MAX that the suite runs on."""

from importlib.metadata import version

from packaging.version import Version

BEFORE_26_7 = Version(version("max")) < Version("26.7.0.dev0")
LEAVES_OUT_A_BIAS = (
    "MAX 26.6.0: in a half-precision CPU graph, a matrix product may use a layer's output without its bias"
)
KEEPS_FLOAT32 = "MAX 26.6.0 does not round float32 to TF32"
