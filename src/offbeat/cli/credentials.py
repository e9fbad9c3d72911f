"""Credentials: the secret and the certificates by which machines of a run know each other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..runtime.tls import TLS, TLSError
from .errors import UsageError

SECRET = "OFFBEAT_SECRET"
LEAST_SECRET = 16
"""Characters."""


def shared_secret(file: str | None) -> bytes:
    """What all machines of the run know.

    Raises:
        UsageError: there is none, it is short, or others on this machine may read it.
    """
    if file == "-":
        origin = "the first line of the input"
        try:
            # There is no input where it was closed before this program began.
            text = sys.stdin.readline().strip() if sys.stdin else ""
        except UnicodeDecodeError as error:
            raise UsageError(f"the secret in {origin} is no text in UTF-8") from error
    elif file is not None:
        path, origin = Path(file), file
        try:
            text = path.read_text().strip()
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read --secret {file}: {error}") from error
        if mode & 0o077:
            raise UsageError(f"--secret {file} can be read by others: chmod 600 {file}")
    else:
        text, origin = os.environ.get(SECRET, "").strip(), SECRET
        if not text:
            raise UsageError(
                f"machines that meet need a common secret: give --secret FILE or set {SECRET}, for "
                "example to the output of `openssl rand -hex 32`"
            )
    if len(text) < LEAST_SECRET:
        raise UsageError(
            f"the secret in {origin} has {len(text)} characters; at least {LEAST_SECRET} are needed"
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the secret in {origin} is no text in UTF-8") from error


def certificates(folder: str | None) -> TLS | None:
    """The certificates in that folder.

    Raises:
        UsageError: one is missing or cannot be used.
    """
    try:
        return None if folder is None else TLS.of_folder(Path(folder))
    except TLSError as error:
        raise UsageError(f"--tls {folder}: {error}") from error
