"""How a benchmark is timed beside its twin, held against what was recorded, and shown."""

from collections.abc import Callable, Iterator
from importlib.metadata import version

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console
from rich.table import Table

from tests.speed.baseline import Baseline, path_for
from tests.speed.turns import Turns, ratio

ROUNDS = 15
RETRIES = 2  # before a ratio is believed to be worse
Beside = Callable[..., None]
SHOWN = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def baseline(request: pytest.FixtureRequest, device: str) -> Iterator[Baseline]:
    """What is recorded for this machine; written anew in the end where `--record` asks for it."""
    kept = Baseline(path_for(device), device)
    yield kept
    if request.config.getoption("--record") and not request.session.testsfailed:
        kept.save({package: version(package) for package in ("max", "torch")})


@pytest.fixture
def beside(benchmark: BenchmarkFixture, request: pytest.FixtureRequest, baseline: Baseline) -> Beside:
    """`beside(ours, twin)` times both, turn by turn, and fails where their ratio is worse than recorded."""

    def measure(
        ours: Callable[[], object], twin: Callable[[], object], name: str, rounds: int = ROUNDS, n: int = 1
    ) -> None:
        turns = Turns(ours, twin)
        benchmark.pedantic(turns, rounds=rounds, iterations=turns.n_ours)
        assert benchmark.stats is not None
        seconds = benchmark.stats.stats
        found = ratio(seconds.data, turns.twin_seconds[:rounds])
        benchmark.extra_info |= {"ratio": found, "twin": turns.twin_seconds[:rounds], "n": n}
        recording = request.config.getoption("--record")
        limit = None if recording else baseline.limit(name)
        if recording:
            baseline.record(name, found)
        elif limit is not None:
            found = min([found, *(turns.take(rounds) for _ in range(RETRIES if found > limit else 0))])
        times = (f"{1e6 * value / n:,.0f}" for value in (seconds.median, seconds.median / found))
        _table(request.config).add_row(name, *times, f"{found:.2f}", "" if limit is None else f"{limit:.2f}")
        recorded = baseline.ratios.get(name)
        assert limit is None or found <= limit, (
            f"{name} takes {found:.3f} times what its twin takes; recorded: {recorded}"
        )

    return measure


def _table(config: pytest.Config) -> Table:
    if SHOWN not in config.stash:
        table = Table("benchmark", title="medians, and ours over PyTorch's turn by turn")
        for heading in ("ours µs", "PyTorch µs", "ratio", "at most"):
            table.add_column(heading, justify="right")
        config.stash[SHOWN] = table
    return config.stash[SHOWN]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the ratios."""
    if SHOWN in config.stash:
        console = Console(width=120)
        with console.capture() as text:
            console.print(config.stash[SHOWN])
        terminalreporter.write_line(text.get())
