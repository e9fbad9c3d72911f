"""The IDX format of MNIST and its relatives.

A file is two zero bytes, a byte for the type, a byte for the number of dimensions, each dimension
as a big-endian 32-bit number, and then the values (LeCun, Cortes, Burges: "The MNIST database of
handwritten digits", file formats).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from offbeat.problems.problem import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor in an IDX file, which is unpacked first if its name ends in .gz.

    Raises:
        DataError: if the file is damaged, not IDX, or holds other values than unsigned bytes.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is not a whole gzip file: {error}") from error
    return parse_idx(content, str(path))


def parse_idx(content: bytes, name: str) -> Tensor:
    """The uint8 tensor in the bytes of an IDX file; errors call it `name`.

    Raises:
        DataError: as `read_idx`.
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{name} is not an IDX file: it starts with {content[:4].hex(' ')!r}")
    kind, dimensions = content[2], content[3]
    if kind != _UNSIGNED_BYTE or dimensions == 0:
        raise DataError(
            f"{name} is not an IDX file of unsigned bytes: type 0x{kind:02x}, "
            f"{dimensions} dimensions"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{name} is truncated: {len(content)} bytes of an IDX header of {start}")
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", content[4:start])
    size = start + math.prod(shape)
    if len(content) != size:
        what = "truncated" if len(content) < size else "too long"
        raise DataError(f"{name} is {what}: {len(content)} bytes, {size} expected for {shape}")
    # A bytearray, because torch wants memory that may be written.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)
