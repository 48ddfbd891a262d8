"""Turns CUDA sources into C++ that the emulated device compiles: launches and shared variables, on the same lines.

python rewrite.py csrc/cuda build/kernels
"""

import re
import sys
from pathlib import Path

LAUNCH = re.compile(r"([A-Za-z_][\w:]*(?:<[^<>;]*>)?)(\s*)<<<(.*?)>>>\s*\(", re.DOTALL)
DYNAMIC = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?([\w:<> ]+?) (\w+)\[\];")
SHARED = re.compile(r"__shared__ ([^;=]+?) (\w+)((?:\[[^\]]*\])*);")


def rewrite(text: str, path: Path) -> str:
    """The same source with kernel<<<how>>>(what) as a call and shared variables as references to the block's memory."""
    numbers = iter(range(1_000_000))

    def shared(match: re.Match) -> str:
        kind, name, extents = match.groups()
        return (
            f"typedef {kind} {name}_in_block{extents}; {name}_in_block& {name} = "
            f"*static_cast<{name}_in_block*>(::cuda_host::shared_memory({next(numbers)}, "
            f'"{name}", sizeof({name}_in_block), alignof({name}_in_block)));'
        )

    text = DYNAMIC.sub(r"\1* const \2 = static_cast<\1*>(::cuda_host::dynamic_shared_memory());", text)
    text = SHARED.sub(shared, text)
    text = LAUNCH.sub(r'::cuda_host::Launch("\1", \3).run(\1,\2 ', text)
    return f'#line 1 "{path.as_posix()}"\n{text}'


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted([*source.glob("*.cu"), *source.glob("*.cuh"), *source.glob("*.h")]):
        place = target / path.name.replace(".cu", ".cpp" if path.suffix == ".cu" else ".cu")
        text = rewrite(path.read_text(), path)
        if not place.exists() or place.read_text() != text:  # an unchanged file is not compiled again
            place.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
