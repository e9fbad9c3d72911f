"""Files as data sets publish them, for tests of the loaders."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np

from offbeat.problems.fetch import PublishedFile

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def idx(array):
    array = np.asarray(array, dtype=np.uint8)
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def published(name, content, base="http://127.0.0.1:9/"):
    packed = gzip.compress(content, mtime=0)
    file = PublishedFile(
        name=name,
        urls=(base + name,),
        sha256=sha256(packed),
        unpacked_sha256=sha256(content),
    )
    return file, packed
