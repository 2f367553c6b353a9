"""What a kernel can do wrong. Each message names the instruction, the thread and the address."""


class KernelError(Exception):
    """A kernel did something whose result CUDA does not define.

    Args:
        text: what a thread did; `{address}` and `{other}` stand for an address and a second thread.
        index: which of the threads that execute the instruction did it.
        other: the number of the second thread.
    """

    def __init__(self, text: str, index: int = 0, other: int = -1) -> None:
        super().__init__(text)
        self.index, self.other = int(index), int(other)


class OutOfBounds(KernelError):
    """A thread used an address outside every array, or wrote to an array that is read-only."""


class MisalignedAddress(KernelError):
    """An address is not a multiple of the size of what is read or written there."""


class UninitializedRead(KernelError):
    """A thread read memory that nobody had written."""


class Race(KernelError):
    """Two threads used the same memory, one of them wrote, and no barrier was between them."""


class Deadlock(KernelError):
    """Threads wait for others that will never arrive."""
