"""Journals: the folder of all nodes' journals, begun anew when a run goes on."""

from __future__ import annotations

import shutil
from pathlib import Path


class Journals:
    """A folder made anew. What it held is kept beside it until the run has begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._earlier = folder.with_name(f"{folder.name}.earlier")

    def make(self) -> None:
        """Have an empty folder.

        Raises:
            ValueError: in one line, why that cannot be.
        """
        try:
            # Whoever made it last was killed before the run had begun.
            self.put_back()
            if self.folder.exists():
                self.folder.rename(self._earlier)
            self.folder.mkdir(parents=True)
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"cannot write to {self.folder}: {reason}") from error

    def forget_earlier(self) -> None:
        """The run has begun: what there was before is of a course that is given up."""
        _remove(self._earlier)

    def put_back(self) -> None:
        """The run has not begun: have again what there was before, if anything."""
        if self._earlier.exists():
            _remove(self.folder)
            self._earlier.rename(self.folder)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
