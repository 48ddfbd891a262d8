"""Matches the faces of one person in successive frames, by ByteTrack from the package trackers (the extra `track`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pyface.detections import Detections


class Tracks:
    """The tracks of one video. A track begins in the second frame of a face, and ends a second after its last."""

    def __init__(self) -> None:
        from trackers import ByteTrackTracker

        self._tracker = ByteTrackTracker()

    def ids(self, faces: Detections, time: float) -> list[int | None]:
        """Returns the number of each face's track, None for faces without one.

        Args:
            faces: The faces of the next frame.
            time: Its seconds, later than those of the frame before.
        """
        found = faces.to_supervision()
        found.data = {"face": np.arange(len(faces))}  # the tracker changes the order
        tracked = self._tracker.update(found, timestamp=time)
        ids: list[int | None] = [None] * len(faces)
        for face, number in zip(tracked.data.get("face", []), np.asarray(tracked.tracker_id), strict=True):
            ids[face] = int(number) if number >= 0 else None
        return ids
