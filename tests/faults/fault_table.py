"""A summary of the outcomes in one line, and the table of `tests/faults/README.md`."""

from collections.abc import Sequence
from pathlib import Path

from tests.faults.trial import Outcome

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- faults: written by `nox -s faults -- --readme` -->", "<!-- end of faults -->"


def summary(outcomes: Sequence[Outcome]) -> str:
    """Count the faults that were caught and blamed as expected, and the controls that passed."""
    faults = [outcome for outcome in outcomes if outcome.expected]
    controls = [outcome for outcome in outcomes if not outcome.expected]
    caught = sum(outcome.is_caught for outcome in faults)
    blamed = sum(outcome.is_blamed_rightly for outcome in faults)
    green = sum(not outcome.is_caught for outcome in controls)
    return (
        f"caught {caught}/{len(faults)}, blamed rightly {blamed}/{len(faults)}, controls green {green}/{len(controls)}"
    )


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Write a Markdown table with a row for each fault, then a list of the controls."""
    lines = [
        f"{summary(outcomes)}.",
        "",
        "| fault | caught by | blamed | other words | cosine | would have passed |",
        "|---|---|---|--:|--:|---|",
    ]
    for o in outcomes:
        if not o.expected:
            continue
        comparisons = {"op": o.isolated, "in situ": o.in_situ, "text": o.end_to_end}
        cosine = f"{o.contrast.cosine:.6f}" if o.contrast else ""
        caught = ", ".join(name for name, is_caught in comparisons.items() if is_caught)
        lines.append(f"| {o.name} | {caught} | `{o.blamed}` | {o.words:.0%} | {cosine} | {', '.join(o.let_through)} |")
    controls = "; ".join(o.name for o in outcomes if not o.expected)
    return "\n".join([*lines, "", f"Controls: {controls}."])


def write_readme(outcomes: Sequence[Outcome]) -> None:
    """Replace the table in `tests/faults/README.md`."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{markdown(outcomes)}\n{END}{after}", encoding="utf-8")
