"""Finding the files of a data set on this machine, or fetching them from where they are published.

With a folder given, only that folder counts and nothing is fetched. Otherwise the folder that the
environment variable OFFBEAT_DATA names, then ~/.cache/offbeat/<data set>, then the addresses, from
which files go to that cache. A file is used only if its SHA-256 is the published one. Where none
is published, the first download writes down the SHA-256 that it got beside the file, with a
warning, and later uses check that one.
"""

import hashlib
import http.client
import os
import tempfile
import urllib.request
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offbeat.problems.problem import DataError

DATA_VARIABLE = "OFFBEAT_DATA"
RECORDED = ".sha256"
"""Ending of the file that holds the SHA-256 of a download that has no published one."""
_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file as it is published.

    Args:
        name: the file's name.
        urls: addresses, tried in this order.
        sha256: of its bytes, in hexadecimal; None if none is published.
        unpacked_sha256: of its bytes without gzip, for a copy named without ".gz"; None if such
            a copy does not count.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str | None
    unpacked_sha256: str | None = None

    def copies(self) -> list[tuple[str, str | None]]:
        """Names and SHA-256 under which the file may lie in a folder."""
        packed = [(self.name, self.sha256)]
        if self.unpacked_sha256 is None:
            return packed
        return [*packed, (self.name.removesuffix(".gz"), self.unpacked_sha256)]

    @property
    def wanted(self) -> str:
        """The file and its sum, for errors."""
        return self.name if self.sha256 is None else f"{self.name} (sha256 {self.sha256})"


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
    folders = folders_of(data_set, data_dir, subfolders)
    if data_dir is None:
        return [find(file, folders) or _download_missing(file, folders) for file in files]
    found = [(file, find(file, folders)) for file in files]
    missing = [file for file, path in found if path is None]
    if missing:
        raise DataError(_missing(data_set, missing, folders))
    return [path for _, path in found if path is not None]


def folders_of(data_set: str, data_dir: str | None, subfolders: Sequence[str]) -> list[Path]:
    """Where the files may lie; the last one is the cache unless `data_dir` is given."""
    if data_dir is not None:
        return _below(data_dir, subfolders)
    named = os.environ.get(DATA_VARIABLE)
    cache = Path.home() / ".cache" / "offbeat" / data_set
    return [*(_below(named, subfolders) if named else ()), cache]


def present(files: Sequence[PublishedFile], folders: Sequence[Path]) -> bool:
    """Whether each of `files` lies in one of `folders`, in whatever state."""
    return all(_locate(file, folders) is not None for file in files)


def find(file: PublishedFile, folders: Sequence[Path]) -> Path | None:
    """The first copy of `file` in `folders`, checked, or None.

    Raises:
        DataError: if that copy is not the published file.
    """
    located = _locate(file, folders)
    if located is None:
        return None
    path, expected = located
    _check(path, expected or _recorded(path), file.urls)
    return path


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
    known = "" if file.sha256 is None else f" (sha256 {file.sha256})"
    raise DataError(
        f"cannot fetch {file.name} into {folder} ({'; '.join(failures)}): get it by other means"
        f"{known} and name its folder with data_dir or {DATA_VARIABLE}"
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
            announced = response.length
            while chunk := response.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
        if announced is not None and size != announced:
            raise DataError(f"sent {size} bytes of {announced}")
        if file.sha256 is None:
            _record(digest.hexdigest(), url, folder / file.name)
        elif digest.hexdigest() != file.sha256:
            raise DataError(f"sent {size} bytes of sha256 {digest.hexdigest()}")
        part.replace(folder / file.name)


def _record(sha256: str, url: str, path: Path) -> None:
    path.with_name(path.name + RECORDED).write_text(f"{sha256}  {path.name}\n")
    warnings.warn(
        f"no checksum of {url} is published: what came is used as it is, and its sha256 {sha256} "
        f"is kept in {path.name}{RECORDED} and checked from now on",
        stacklevel=2,
    )


def _recorded(path: Path) -> str | None:
    beside = path.with_name(path.name + RECORDED)
    return beside.read_text().split()[0] if beside.is_file() else None


def _locate(file: PublishedFile, folders: Sequence[Path]) -> tuple[Path, str | None] | None:
    for folder in folders:
        for name, expected in file.copies():
            if (folder / name).is_file():
                return folder / name, expected
    return None


def _check(path: Path, expected: str | None, urls: tuple[str, ...]) -> None:
    if expected is None:
        return
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
    wanted = "; ".join(f"{file.wanted} from {' or '.join(file.urls)}" for file in files)
    first, *others = folders
    where = f"{first}" if first.is_dir() else f"{first}, which is no folder"
    also = f" (nor in {', '.join(map(str, others))})" if others and first.is_dir() else ""
    return f"{data_set} is incomplete in {where}{also}: get {wanted}"
