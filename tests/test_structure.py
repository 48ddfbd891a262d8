"""What import-linter does not check: names stay within their module, and the package's first level stays short."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pyface"
COMPILED = "_C"  # the module of the kernels, which only pyface/ops/extension.py imports


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_takes_a_private_name_from_another(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("pyface")]
    names = [f"{node.module}.{name.name}" for node in ours for name in node.names]
    private = [name for name in names if any(part.startswith("_") for part in name.split("."))]
    allowed = ["pyface.__version__", *([f"pyface.{COMPILED}"] if path == PACKAGE / "ops" / "extension.py" else [])]
    assert [name for name in private if name not in allowed] == []


def test_few_modules_lie_directly_in_the_package():
    assert len([path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]) <= 6


def test_no_caller_asks_for_the_class_of_a_model():
    """What differs between models is in their contract, `FaceModel`, and in `Backbone`."""
    models = {
        node.name
        for path in (PACKAGE / "models").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    callers = [PACKAGE / "detector.py", PACKAGE / "benchmark.py", *(PACKAGE / "training").glob("*.py")]
    callers += [*(PACKAGE.parent / "scripts").glob("*.py"), *(PACKAGE.parent / "benchmarks").glob("*.py")]
    asked = {
        f"{path.name}: {ast.unparse(node)}"
        for path in callers
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass")
        if models & {name.id for argument in node.args[1:] for name in ast.walk(argument) if isinstance(name, ast.Name)}
    }
    assert asked == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").rglob("*.py")), ids=lambda path: path.name)
def test_functions_of_the_command_line_are_short(path):
    """Options are fields of requests, and work is done elsewhere."""
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > 40} == {}
