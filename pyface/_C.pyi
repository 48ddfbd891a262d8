"""The compiled module (csrc/bindings.cpp); pyface/ops/_extension.py is its only user."""

from typing import Any

version: str
source_hash: str
compiler: str
cuda_compiler: str
cuda_archs: str
simd: str
has_cuda: bool
cpu: Any
cuda: Any
