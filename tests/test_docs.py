"""The documentation: its size, its links, and the paths, sessions and versions that it names."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("", "maxwhisper", "reference", "reference/port", "tests/faults", "tests/sizes", "tests/speed", "tests/upgrade")
PAGES = [*(ROOT / room / "README.md" for room in ROOMS), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
COMMANDS = "python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s"
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def lines_of(page: Path) -> Iterator[tuple[str, bool]]:
    """Yield each line and whether it is code, without what `nox -s faults -- --readme` writes."""
    text = re.sub(r"<!-- faults:.*<!-- end of faults -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    is_code = False
    for line in text.splitlines():
        if line.startswith("```"):
            is_code = not is_code
        yield line, is_code


def prose(page: Path) -> str:
    return "\n".join(line for line, is_code in lines_of(page) if not is_code)


def anchors(page: Path) -> set[str]:
    """Return GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sessions() -> set[str]:
    module = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    return {
        function.name
        for function in functions
        if any("session" in ast.unparse(each) for each in function.decorator_list)
    }


def test_the_readme_is_short_and_has_both_commands() -> None:
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert {f"{COMMANDS} parity", f"{COMMANDS} tests"} <= set(lines)


def test_the_readme_counts_faults_as_their_table_does() -> None:
    readme, table = (page.read_text(encoding="utf-8") for page in (PAGES[0], ROOT / "tests/faults/README.md"))
    counted = re.search(r"(\d+) planted faults.* (\d+) harmless changes", readme)
    caught = re.search(r"caught (\d+)/\d+, .* controls green (\d+)/", table)
    assert counted and caught and counted.groups() == caught.groups()


@each_page
def test_lines_are_at_most_100_characters_of_prose_or_120_of_code(page: Path) -> None:
    assert [
        line for line, is_code in lines_of(page) if len(line) > (120 if is_code else 100) and not line.startswith("|")
    ] == []


@each_page
def test_every_link_has_a_target(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


@each_page
def test_every_named_file_exists(page: Path) -> None:
    """Paths are relative to the project's root or to the page's folder."""
    for path in re.findall(r"`([\w.\-]+(?:/[\w.\-]+)+\.(?:py|mojo|json|yml|md))`", prose(page)):
        if not path.startswith("report/"):
            assert (ROOT / path).exists() or (page.parent / path).exists(), path


@each_page
def test_every_named_session_exists(page: Path) -> None:
    named = {
        name for names in re.findall(r"nox -s ((?:\w+ ?)+)", page.read_text(encoding="utf-8")) for name in names.split()
    }
    assert named <= sessions()


def test_contributing_lists_every_session() -> None:
    rows = re.findall(r"^\| `nox -s (\w+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(sessions())


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.search(r"^## \[([^]]+)\]", changelog, flags=re.MULTILINE)
    assert latest
    assert latest[1] == version
