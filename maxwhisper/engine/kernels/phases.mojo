"""Phases of work for all cores: one parallel call runs them all, and a core waits only for the phase before."""

from std.atomic import Atomic
from std.ffi import external_call

comptime Counters = Pointer[Int64, MutUntrackedOrigin]
comptime PATIENCE = 20_000  # looks, some tens of microseconds
comptime APART = 8  # counters in a cache line, of which each has one for itself


struct Phases(Copyable, Movable):
    """One core's view of the phases. Work comes in parts, and whoever is there takes the next, so that a phase ends even if nobody else came.

        var part = phases.first(n)
        while part >= 0:
            …
            part = phases.next()
    """

    var counters: Counters  # for each phase: parts taken, parts done
    var n_parts: Int

    def __init__(out self, counters: Counters):
        self.counters = counters
        self.n_parts = 0

    @staticmethod
    def memory(n_phases: Int) -> List[Int64]:
        """Return memory for the counters of n_phases."""
        return List[Int64](length=2 * APART * n_phases, fill=0)

    def first(mut self, n_parts: Int) -> Int:
        """Begin a phase of n_parts."""
        self.n_parts = n_parts
        return self._take()

    def next(mut self) -> Int:
        """The part that was taken is done; the next one, or -1 when all of them are done."""
        _ = Atomic[Int64].fetch_add(self.counters.unsafe_offset(APART), 1)
        return self._take()

    def _take(mut self) -> Int:
        var part = Int(Atomic[Int64].fetch_add(self.counters, 1))
        if part < self.n_parts:
            return part
        var n_looks = 0
        while Int(Atomic[Int64].load(self.counters.unsafe_offset(APART))) < self.n_parts:
            n_looks += 1
            if n_looks > PATIENCE:  # whoever is awaited may be waiting for this core
                _ = external_call["sched_yield", Int32]()
        self.counters = self.counters.unsafe_offset(2 * APART)
        return -1
