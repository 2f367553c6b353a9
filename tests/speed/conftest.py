"""Fixtures that time a benchmark against its PyTorch counterpart and check the recorded ratio."""

import statistics
from collections.abc import Callable, Iterator
from importlib.metadata import version

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console
from rich.table import Table

from tests.speed.baseline import Baseline, path_for
from tests.speed.interleaved import InterleavedTiming, ratio

ROUNDS = 15
RETRIES = 2  # measurements that must confirm a regression before the test fails
CompareSpeed = Callable[..., None]
TABLE_KEY = pytest.StashKey[Table]()
NOTICE_KEY = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def baseline(request: pytest.FixtureRequest, device: str) -> Iterator[Baseline]:
    """Load the results recorded for this machine. With `--record`, save the new ones at the end."""
    stored = Baseline(path_for(device), device)
    request.config.stash[NOTICE_KEY] = "" if request.config.getoption("--record") else stored.notice
    yield stored
    if request.config.getoption("--record") and not request.session.testsfailed:
        stored.save({package: version(package) for package in ("max", "torch")})


@pytest.fixture
def compare_speed(
    benchmark: BenchmarkFixture, request: pytest.FixtureRequest, baseline: Baseline, device: str
) -> CompareSpeed:
    """Provide `compare_speed(function, counterpart, name)`.

    It times both, interleaved, and fails if the result is worse than the recorded ones: on the CPU
    the ratio of their times, on a GPU the function's time.
    """

    def measure(
        function: Callable[[], object], counterpart: Callable[[], object], name: str, rounds: int = ROUNDS, n: int = 1
    ) -> None:
        timing = InterleavedTiming(function, counterpart)
        benchmark.pedantic(timing, rounds=rounds, iterations=timing.n_calls)
        assert benchmark.stats is not None
        seconds = benchmark.stats.stats
        measured = ratio(seconds.data, timing.counterpart_seconds[:rounds])
        benchmark.extra_info |= {"ratio": measured, "twin": timing.counterpart_seconds[:rounds], "n": n}
        result = measured if device == "cpu" else 1e6 * seconds.median / n

        def again() -> float:
            new_ratio = timing.measure(rounds)
            return new_ratio if device == "cpu" else 1e6 * statistics.median(timing.seconds) / n

        recording = request.config.getoption("--record")
        limit = None if recording else baseline.limit(name)
        if recording:
            baseline.record(name, result)
        elif limit is not None:
            result = min([result, *(again() for _ in range(RETRIES if result > limit else 0))])
        times = (f"{1e6 * value / n:,.1f}" for value in (seconds.median, seconds.median / measured))
        _table(request.config).add_row(name, *times, f"{measured:.2f}", "" if limit is None else f"{limit:.2f}")
        assert limit is None or result <= limit, (
            f"{name}: {result:.4g} {baseline.unit}; recorded: {baseline.results.get(name)}"
        )

    return measure


def _table(config: pytest.Config) -> Table:
    if TABLE_KEY not in config.stash:
        table = Table(
            "benchmark",
            title="medians; ratio: MAX's time / PyTorch's, interleaved; limit: of the ratio, on a GPU of MAX's time",
        )
        for heading in ("MAX µs", "PyTorch µs", "ratio", "limit"):
            table.add_column(heading, justify="right")
        config.stash[TABLE_KEY] = table
    return config.stash[TABLE_KEY]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and whether there was anything to compare with."""
    if TABLE_KEY in config.stash:
        console = Console(width=120)
        with console.capture() as text:
            console.print(config.stash[TABLE_KEY])
        terminalreporter.write_line(text.get())
        terminalreporter.write_line(config.stash[NOTICE_KEY], yellow=True)
