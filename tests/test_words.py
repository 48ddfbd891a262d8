"""The words of code and documents: phrases that nobody would say stay out, and errors have one form."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = (".py", ".md", ".cpp", ".h", ".cu", ".cuh", ".html", ".js", ".yml")
FOLDERS = ("pyface", "csrc", "tests", "docs", "examples", "scripts", "benchmarks", ".github")
TEXTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    if path.suffix in SUFFIXES and path != Path(__file__)
)
AWKWARD = [
    r"as near as that takes",
    r"seen as large as",
    r"landmarks (are )?off by",
    r"how to look at an? (picture|image)",
    r"without weights finds noise",
    r"what circulates for",
    r"the detectors that there are",
    r"(results )?leave as soon as",
    r"of all that is random",
    r"what is computed in",
    r"and mtcnn is none",
    r"and does not: it is",
    r"no file of weights",
    r"are learned from too",
    r"will flatter",
    r"a run that was cut off",
    r"whose are under the",
    r"says it of your machine",
    r"weights in the box",
    r"wants to be alone",
    r"lead onwards",
    r"next to nothing",
    r"proposals a picture",
    # "a" for a rate
    r"(bytes|[KMG]B|ms|us|ns|numbers|values|logits|candidates|multiply-adds|line|JSON|31) an? "
    r"(picture|image|level|cell|pixel|anchor|value|crop|array|face|second)",
    r"one (block|thread|word|line) an? (image|anchor|face|cell|level)",
]
AWKWARD_OR = re.compile(r"\b(" + "|".join(AWKWARD).replace(" ", r"\s+(?:#\s*|//\s*)?") + r")\b", re.IGNORECASE)
MODULES = sorted((ROOT / "pyface").rglob("*.py"))


def literal(node: ast.AST) -> str:
    """The text of a string, its values as {}; empty for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages(source: str) -> list[str]:
    """The sentences that exceptions and the command line's reports are made with."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    names = re.compile(r"\w*Error|fail|print|print_status|warn|echo|exit")
    said = [call for call in calls if names.fullmatch(ast.unparse(call.func).rpartition(".")[2])]
    return [text for call in said for node in call.args if " " in (text := literal(node))]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_reads_awkwardly(path):
    assert [found[0] for found in AWKWARD_OR.finditer(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("text", ["31 numbers a level", "the faces\n# wants to be alone", "one line of JSON a picture"])
def test_awkward_words_are_found(text):
    assert AWKWARD_OR.search(text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_messages_have_one_form(path):
    """What is accepted is told by "must", what to do comes after a semicolon, and the data are images."""
    wrong = re.compile(r"should be|should have|should hold|\bpictures?\b|, (give|leave|pass|use|add|choose) ")
    assert [text for text in messages(path.read_text(encoding="utf-8")) if wrong.search(text)] == []


def test_there_are_messages():
    assert sum(len(messages(path.read_text(encoding="utf-8"))) for path in MODULES) > 200
