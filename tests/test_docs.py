"""The documents: citations of docs/detectors.md and links lead to what exists, and the API reference is complete."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import pyface
from pyface import models, ops

ROOT = Path(__file__).parents[1]
DETECTORS = ROOT / "docs" / "detectors.md"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "pyface/weights/*.md")
    for path in ROOT.glob(pattern)
)
CODE = sorted(
    path
    for folder in ("pyface", "csrc", "tests", "scripts", "benchmarks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh") and path != Path(__file__)
)

# "2.6", "2.6d", "2.6 a-c" or "8, row 15", perhaps with a remark: "2.6 (S3FD)".
ITEM = r"\d+(?:\.\d+)?(?:[a-z](?:-[a-z])?\b| [a-z](?:-[a-z])?\b(?! ))?(?:, row \d+)?(?: \([^)]*\))?"
CITATION = re.compile(rf"detectors\.md(?:,? sections?)? ({ITEM}(?:(?:,| and|, and) {ITEM})*)")
# A text that cites the file once continues with the number alone: "(2.3)".
SHORT = re.compile(r"\((\d+(?:\.\d+|, row \d+)(?:, \d+\.\d+)*)\)")
PARTS = re.compile(r"(\d+(?:\.\d+)?)(?: ?([a-z](?:-[a-z])?)\b)?(?:, row (\d+))?")


class Citation(NamedTuple):
    section: str
    letters: str
    row: str

    def problem(self) -> str | None:
        text = SECTIONS.get(self.section)
        if text is None:
            return f"there is no section {self.section}"
        for letter in re.findall("[a-z]", self.letters):
            if f"({letter})" not in text:
                return f"section {self.section} has no ({letter})"
        if self.row and f"\n| {self.row} |" not in text:
            return f"section {self.section} has no row {self.row}"
        return None


def sections_of(text: str) -> dict[str, str]:
    """The text of each numbered section; a table row that begins with such a number ("| 10.3 |") counts as one."""
    parts = re.split(r"^#{2,3} (\d+(?:\.\d+)?)\.? .*$", text, flags=re.MULTILINE)
    rows = re.findall(r"^\| (\d+\.\d+) (\|.*)$", text, flags=re.MULTILINE)
    return dict(rows) | dict(zip(parts[1::2], parts[2::2], strict=True))


SECTIONS = sections_of(DETECTORS.read_text(encoding="utf-8"))


def cited_lists(text: str) -> list[str]:
    """What follows the file's name at each citation: "2.1 and 2.6 (S3FD), 4.5 (SRN)"."""
    return CITATION.findall(re.sub(r"\s*\n[ \t]*(?:#|//)?[ \t]*", " ", text))  # citations may be wrapped


def citations(text: str) -> list[Citation]:
    """What a file cites of docs/detectors.md."""
    cited = cited_lists(text)
    for scope in [*re.findall(r'"""(.*?)"""', text, re.DOTALL), *text.splitlines()]:
        if "detectors.md" in scope:
            cited += SHORT.findall(scope)
    return [Citation(*parts) for items in cited for parts in PARTS.findall(re.sub(r"\([^)]*\)", "", items))]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", text, flags=re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        repeated = (f"{slug}-{k}" for k in range(1, 1000))
        found.add(slug if slug not in found else next(name for name in repeated if name not in found))
    return found


def broken_links(document: Path) -> Iterator[str]:
    """Relative links of a document whose file, or whose heading in that file, does not exist."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(<?([^)>\s]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        is_lost = file.suffix == ".md" and anchor and file.exists() and anchor not in anchors(file)
        if not file.exists() or is_lost:
            yield target


def test_citations():
    problems = []
    for path in [*CODE, *DOCUMENTS]:
        text = path.read_text(encoding="utf-8")
        found = [citation.problem() for citation in citations(text)]
        if "DETECTORS.md" in text or (path in CODE and len(cited_lists(text)) < text.count("detectors.md")):
            found.append("cite a section, as docs/detectors.md 2.3")
        problems += [f"{path.relative_to(ROOT)}: {problem}" for problem in found if problem]
    assert not problems, "\n".join(problems)


def test_there_are_citations():
    assert sum(len(citations(path.read_text(encoding="utf-8"))) for path in CODE) > 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(docs/detectors.md 2.6, 4.5)", ["2.6", "4.5"]),
        ("docs/detectors.md 2.1 and 2.6 (S3FD), 4.5 (SRN), 5.4 (SSH).", ["2.1", "2.6", "4.5", "5.4"]),
        ("# docs/detectors.md\n    # 3.3 and 6.1 say", ["3.3", "6.1"]),
        ("// (docs/detectors.md 2.6d and 4.5)", ["2.6d", "4.5"]),
        ("docs/detectors.md 2.6 a-c.", ["2.6a-c"]),
        ("docs/detectors.md 2.6 a picture", ["2.6"]),
        ("docs/detectors.md 8, row 15); 7", ["8/15"]),
        (
            '"""Of the paper (docs/detectors.md 2).\n\n    a: One (2.1).\n    b: Two (8, row 14).\n"""',
            ["2", "2.1", "8/14"],
        ),
        ("docs/detectors.md is long (2.1)", ["2.1"]),
        ("see (2.1)", []),
    ],
)
def test_what_counts_as_a_citation(text, expected):
    assert [c.section + c.letters + (c.row and f"/{c.row}") for c in citations(text)] == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("docs/detectors.md 2.9", "there is no section 2.9"),
        ("docs/detectors.md 2.6, 12", "there is no section 12"),
        ("docs/detectors.md 10.8", "there is no section 10.8"),
        ("docs/detectors.md 2.6 a-e.", "section 2.6 has no (e)"),
        ("docs/detectors.md 8, row 99", "section 8 has no row 99"),
    ],
)
def test_broken_citations_are_found(text, problem):
    assert problem in [citation.problem() for citation in citations(text)]


def test_links():
    broken = [f"{document.relative_to(ROOT)}: {link}" for document in DOCUMENTS for link in broken_links(document)]
    assert not broken, "\n".join(broken)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `title`, twice\n# A title twice\n", encoding="utf-8")
    page = tmp_path / "page.md"
    good = "[a](other.md) ![b](other.md#a-title-twice) [c](other.md#a-title-twice-1) [d](https://x.org/y) [e](#top)"
    page.write_text(
        f"# Top\n{good}\n[f](none.md) [g](other.md#none) [h](#none) <img src='' src=\"none.png\">\n", "utf-8"
    )
    assert list(broken_links(page)) == ["none.md", "other.md#none", "#none", "none.png"]


def test_the_api_reference_has_what_is_public():
    pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/api/*.md"))
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", pages, flags=re.MULTILINE)}
    of_mtcnn = {"pnet", "convnet"}  # its networks on a CPU, which nobody else calls
    assert {*pyface.__all__, *ops.__all__, *models.__all__} - {"ops"} - of_mtcnn <= shown


def test_the_citation_has_the_version():
    assert f"\nversion: {pyface.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
