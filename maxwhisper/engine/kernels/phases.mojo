"""Phases of work in one parallel call: cores wait only until all parts of a phase are done."""

from std.atomic import Atomic
from std.ffi import external_call

comptime Counters = Pointer[Int64, MutUntrackedOrigin]
comptime PATIENCE = 20_000  # checks before a waiting core yields, some tens of microseconds
comptime APART = 8  # counters that fit in a cache line; each counter has its own cache line


struct Phases(Copyable, Movable):
    """A core's position in the phases.

    A phase has parts. Each core takes the next part that is left, so a phase ends even if the other
    cores have not started.

        var part = phases.first(n_parts)
        while part >= 0:
            work(part)
            part = phases.next()
    """

    var counters: Counters  # for each phase the number of parts taken, and of parts done
    var n_parts: Int

    def __init__(out self, counters: Counters):
        self.counters = counters
        self.n_parts = 0

    @staticmethod
    def memory(n_phases: Int) -> List[Int64]:
        """Return memory for the counters of n_phases, all zero."""
        return List[Int64](length=2 * APART * n_phases, fill=0)

    def first(mut self, n_parts: Int) -> Int:
        """Begin a phase of n_parts, and take a part; -1 if the phase is done."""
        self.n_parts = n_parts
        return self._take()

    def next(mut self) -> Int:
        """Mark the part as done, and take the next one; -1 if the phase is done."""
        _ = Atomic[Int64].fetch_add(self.counters.unsafe_offset(APART), 1)
        return self._take()

    def _take(mut self) -> Int:
        var part = Int(Atomic[Int64].fetch_add(self.counters, 1))
        if part < self.n_parts:
            return part
        var n_looks = 0
        while Int(Atomic[Int64].load(self.counters.unsafe_offset(APART))) < self.n_parts:
            n_looks += 1
            if n_looks > PATIENCE:  # the other thread may be waiting for this core
                _ = external_call["sched_yield", Int32]()
        self.counters = self.counters.unsafe_offset(2 * APART)
        return -1
