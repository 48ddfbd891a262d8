"""Finding images by the names that other programs give them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pyface.data.annotations import DatasetError


class ImageNames:
    """The images below a folder, found by names with more, fewer or other folders in front, or without a suffix.

    A name matches an image if its folders end with those of the image, counted from the common folder, or the other way
    round: `/upload/7/a.jpg` and `a.jpg` match `a.jpg`, and `a.jpg`, `train/a.jpg` and `data/train/a.jpg`
    match `train/a.jpg`, but `val/a.jpg` does not. Numbers match names with leading zeros.

    Args:
        paths: The images.
        names: Their paths from the common folder.

    Example:
        >>> names = ImageNames([Path("data/images/train/007.jpg")], ["train/007.jpg"])
        >>> [names.find(name) for name in ("007.jpg", "C:\\\\photos\\\\train\\\\007.jpg", "7", "val/007.jpg")]
        [0, 0, 0, None]
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        self._paths = paths
        self._folders = [name.split("/")[:-1] for name in names]
        self._by_last: dict[str, list[int]] = defaultdict(list)
        for index, path in enumerate(paths):
            for key in {path.name, path.stem, _without_zeros(path.stem)}:
                self._by_last[key].append(index)

    def find(self, name: str) -> int | None:
        """Returns the index of the image with a name; of several that match, the one with the most folders in common.

        Raises:
            DatasetError: Several match equally well.
        """
        *folders, last = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")] or [""]
        fitting = [k for k in self._by_last.get(last, []) if _fits(folders, self._folders[k])]
        common = {k: _common(folders, self._paths[k].parts[:-1]) for k in fitting}
        closest = [k for k in fitting if common[k] == max(common.values())]
        if len(closest) > 1:
            places = " and ".join(str(self._paths[k]) for k in closest[:2])
            raise DatasetError(f"the name of an image must be unambiguous, got {name}, which could be {places}")
        return closest[0] if closest else None


def _without_zeros(stem: str) -> str:
    return str(int(stem)) if stem.isdecimal() else stem


def _fits(a: Sequence[str], b: Sequence[str]) -> bool:
    return _common(a, b) == min(len(a), len(b))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Counts the last parts that two paths share."""
    shared = [x == y for x, y in zip(reversed(a), reversed(b), strict=False)]
    return shared.index(False) if False in shared else len(shared)
