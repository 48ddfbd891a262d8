"""The hook and the extension that mkdocs.yml names, which build the documentation site from the repository's files."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FILES = (
    "*.md",
    "LICENSE",
    "CMakeLists.txt",
    "CITATION.cff",
    "docs/**/*",
    "examples/**/*.md",
    "examples/**/*.cpp",
    "examples/**/*.py",
    "pyface/**/*.py",
    "pyface/weights/*.md",
    "pyface/weights/*.json",
    "csrc/**/*.h",
    "csrc/**/*.cu*",
    "tests/cuda_host/*",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Gives the site the paths of the repository, so that a relative link works there as it does on GitHub.

    MkDocs alone would serve docs/detecting.md as detecting.md, and a link from it to ../README.md would leave the site.
    Here every file keeps its path, and files outside docs/ belong to the site too: Markdown as pages, sources as
    they are.
    """
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for path in sorted({path for pattern in FILES for path in ROOT.glob(pattern) if path.is_file()}):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Points links to the folder of the weights, which is not a page, to the page about them."""
    return markdown.replace("](../pyface/weights)", "](models.md)")


class Examples(griffe.Extension):
    """Marks the examples in docstrings as code: griffe knows that section only by its plural."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
