"""What all kernels share: pointers, and programmatic dependent launch."""

from max.gpu.host.launch_attribute import LaunchAttribute, LaunchAttributeID, LaunchAttributeValue
from std.sys._assembly import inlined_assembly

# Pointers to what an earlier kernel of the graph may have written are mutable, even if they are only
# read: the compiler reads immutable memory through a cache that is not coherent.
comptime Floats = Pointer[Float32, MutAnyOrigin]
comptime Doubles = Pointer[Float64, MutAnyOrigin]
comptime Int32s = Pointer[Int32, MutAnyOrigin]
comptime Int64s = Pointer[Int64, MutAnyOrigin]
comptime Cache[dtype: DType] = Pointer[Scalar[dtype], MutAnyOrigin]
comptime Weights[dtype: DType] = Pointer[Scalar[dtype], ImmutAnyOrigin]

comptime LOWEST = Float32(-1e30)  # below all logits and scores, and finite, so that differences are numbers
comptime HEAD_DIM = 64


@always_inline
def wait_for_previous[pdl: Bool]():
    """Wait until the kernels before this one have ended, and see all that they wrote."""
    comptime if pdl:
        inlined_assembly["griddepcontrol.wait;", NoneType, constraints="~{memory}"]()


@always_inline
def let_next_start[pdl: Bool]():
    """Let the next kernel start, which waits before it reads what this one writes."""
    comptime if pdl:
        inlined_assembly["griddepcontrol.launch_dependents;", NoneType, constraints="~{memory}"]()


@always_inline
def attributes_of[pdl: Bool]() -> List[LaunchAttribute]:
    """Return the attributes to launch a kernel with."""
    comptime if pdl:
        return [LaunchAttribute(LaunchAttributeID.PROGRAMMATIC_STREAM_SERIALIZATION, LaunchAttributeValue(True))]
    else:
        return List[LaunchAttribute]()
