"""Pictures beside clips: two datasets read as one."""

from __future__ import annotations

from typing import Any

import attrs

from .sample import Sample

__all__ = ["Beside"]


@attrs.frozen(eq=False)
class Beside:
    """A dataset of clips and one of pictures; `position` names a sample of either for `sample`."""

    clips: Any
    pictures: Any

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of every sample's image, clips and pictures alike."""
        return self.clips.resolution

    def position(self, number: int, *, picture: bool) -> int:
        """What `sample` calls sample `number` of the pictures, or of the clips."""
        return 2 * number + picture

    def sample(self, position: int) -> Sample:
        """The sample at a position that `position` gave."""
        number, picture = divmod(position, 2)
        return (self.pictures if picture else self.clips).sample(number)
