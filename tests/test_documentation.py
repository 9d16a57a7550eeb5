"""The documentation agrees with the code: what it names exists, and no module, script or page is missing from it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from darkroom.catalogue.models import Catalogue

from tests.test_layout import ROOT, committed_files

PRODUCT = ("core", "functions", "operator", "worker-images", "courier", "cli", "loadtest", "knative")
PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "knative/README.md",
        ROOT / "loadtest/README.md",
    )
    if path.name != "CHANGELOG.md"
)
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
ARCHITECTURE_LINES = 150
"""A page that is read as a whole; details belong in `docs/`."""

FOLDER_MODULES = 14
"""A folder with more has more than one subject."""


def tables(text: str) -> list[list[str]]:
    """The cells of every table row."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def in_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def product_modules() -> set[str]:
    """The paths of all modules of the product, but for `__init__.py` and `__main__.py`."""
    names = {path.relative_to(ROOT) for path in committed_files() if path.suffix == ".py"}
    return {name.as_posix() for name in names if name.parts[0] in PRODUCT and not name.name.startswith("__")}


def indexed_modules() -> list[str]:
    """The modules that `docs/modules.md` lists: its headings are folders, the first cells name files in them."""
    folder, found = "", []
    for line in (ROOT / "docs/modules.md").read_text().splitlines():
        if heading := re.fullmatch(r"#{2,} (\S+)", line):
            folder = heading[1]
        for row in tables(line):
            found += [f"{folder}/{name}" for name in in_code(row[0])]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A name may be the end of a path: a table's row has the folder once."""
    names = {name for text in in_code(page.read_text()) if re.fullmatch(r"[\w./-]+\.(?:py|lua|mjs)", name := text)}
    paths = [f"/{path.relative_to(ROOT)}" for path in committed_files()]
    assert {name for name in names if not any(path.endswith(f"/{name}") for path in paths)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_of_a_page_resolve(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    broken = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_architecture_is_a_page_that_is_read_as_a_whole() -> None:
    assert len(ARCHITECTURE.read_text().splitlines()) <= ARCHITECTURE_LINES


def test_every_module_of_the_product_is_in_the_module_index() -> None:
    modules, indexed = product_modules(), indexed_modules()
    assert sorted(indexed) == sorted(set(indexed))
    assert {"missing": modules - set(indexed), "gone": set(indexed) - modules} == {"missing": set(), "gone": set()}


def test_every_script_of_the_ledger_is_in_the_tables_of_its_page() -> None:
    scripts = {path.stem for path in (ROOT / "core/darkroom/ledger/lua").glob("*/*.lua")}
    named = {name for row in tables((ROOT / "docs/ledger.md").read_text()) for name in in_code(row[0])}
    assert named == scripts


def test_every_page_is_found_from_the_readme_or_the_architecture() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in (ROOT / "README.md", ARCHITECTURE)
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    }
    assert {str(page.relative_to(ROOT)) for page in PAGES if page not in linked} == set()


def test_no_folder_of_the_product_has_more_than_fourteen_modules() -> None:
    folders = Counter(Path(name).parent.as_posix() for name in product_modules())
    assert {folder: count for folder, count in folders.items() if count > FOLDER_MODULES} == {}


def test_the_model_that_the_architecture_shows_can_be_loaded(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL)
    (tmp_path / "lighthouses.toml").write_text(example)
    assert Catalogue.load([tmp_path]).get("lighthouses").parameters["steps"].maximum == pytest.approx(30)
