"""Finding the files of a data set on this machine, or fetching them from where they are published.

With a folder given, only that folder counts and nothing is fetched. Otherwise the folder that the
environment variable OFFBEAT_DATA names, then ~/.cache/offbeat/<data set>, then the addresses, from
which files go to that cache. A file is used only if its SHA-256 is the published one.
"""

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offbeat.problems.problem import DataError

DATA_VARIABLE = "OFFBEAT_DATA"
_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file as it is published.

    Args:
        name: the file's name.
        urls: addresses, tried in this order.
        sha256: of its bytes, in hexadecimal.
        unpacked_sha256: of its bytes without gzip, for a copy named without ".gz"; None if such
            a copy does not count.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str
    unpacked_sha256: str | None = None

    def copies(self) -> list[tuple[str, str]]:
        """Names and SHA-256 under which the file may lie in a folder."""
        packed = [(self.name, self.sha256)]
        if self.unpacked_sha256 is None:
            return packed
        return [*packed, (self.name.removesuffix(".gz"), self.unpacked_sha256)]


def obtain(
    data_set: str,
    files: Sequence[PublishedFile],
    *,
    data_dir: str | None = None,
    subfolders: Sequence[str] = (".",),
) -> list[Path]:
    """Paths of checked copies of `files`, in their order, some perhaps unpacked.

    Args:
        data_set: the name of the folder in the cache, and in errors.
        files: what to obtain.
        data_dir: the folder to read; None for OFFBEAT_DATA, the cache and the addresses.
        subfolders: where in `data_dir` or OFFBEAT_DATA to look.

    Raises:
        DataError: if a file is missing from `data_dir`, damaged, or cannot be fetched.
    """
    if data_dir is not None:
        folders = _below(data_dir, subfolders)
        found = [(file, find(file, folders)) for file in files]
        missing = [file for file, path in found if path is None]
        if missing:
            raise DataError(_missing(data_set, missing, folders))
        return [path for _, path in found if path is not None]
    cache = Path.home() / ".cache" / "offbeat" / data_set
    named = os.environ.get(DATA_VARIABLE)
    folders = [*(_below(named, subfolders) if named else ()), cache]
    return [find(file, folders) or _download_missing(file, folders) for file in files]


def find(file: PublishedFile, folders: Sequence[Path]) -> Path | None:
    """The first copy of `file` in `folders`, checked, or None.

    Raises:
        DataError: if that copy is not the published file.
    """
    for folder in folders:
        for name, expected in file.copies():
            path = folder / name
            if path.is_file():
                _check(path, expected, file.urls)
                return path
    return None


def download(file: PublishedFile, folder: Path) -> Path:
    """Fetch `file` into `folder` from the first address that has it; whole or not at all.

    Raises:
        DataError: if no address gives the published file, or it cannot be written.
    """
    failures: list[str] = []
    for url in file.urls:
        try:
            _download(url, file, folder)
        except (OSError, http.client.HTTPException, DataError) as error:
            failures.append(f"{url}: {error}")
        else:
            return folder / file.name
    raise DataError(
        f"cannot fetch {file.name} into {folder} ({'; '.join(failures)}): get it by other means "
        f"(sha256 {file.sha256}) and name its folder with data_dir or {DATA_VARIABLE}"
    )


def _download_missing(file: PublishedFile, folders: Sequence[Path]) -> Path:
    try:
        return download(file, folders[-1])
    except DataError as error:
        looked = ", ".join(map(str, folders))
        raise DataError(f"{file.name} is missing in {looked}; {error}") from error


def _download(url: str, file: PublishedFile, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{file.name}.") as scratch:
        part = Path(scratch) / file.name
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
            part.open("wb") as out,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise DataError(f"sent {size} bytes of sha256 {digest.hexdigest()}")
        part.replace(folder / file.name)


def _check(path: Path, expected: str, urls: tuple[str, ...]) -> None:
    with path.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if actual != expected:
        raise DataError(
            f"{path} is truncated, corrupt or another file: {path.stat().st_size} bytes of sha256 "
            f"{actual}, expected {expected}; delete it and get it again from {' or '.join(urls)}"
        )


def _below(root: str, subfolders: Sequence[str]) -> list[Path]:
    return [Path(root).expanduser() / subfolder for subfolder in subfolders]


def _missing(data_set: str, files: Sequence[PublishedFile], folders: Sequence[Path]) -> str:
    wanted = "; ".join(f"{f.name} (sha256 {f.sha256}) from {' or '.join(f.urls)}" for f in files)
    first, *others = folders
    where = f"{first}" if first.is_dir() else f"{first}, which is no folder"
    also = f" (nor in {', '.join(map(str, others))})" if others and first.is_dir() else ""
    return f"{data_set} is incomplete in {where}{also}: get {wanted}"
