"""Compression: vectors in fewer bytes, for the methods that send them.

A compressor is pure data: it can be built, compared, printed and tested with nothing running. What
it makes of a vector is a message, so that a line's time is that of the bytes that are left.
"""

from __future__ import annotations

from .compressor import Compressed as Compressed
from .compressor import Compressor as Compressor
from .e3m0 import E3M0 as E3M0
from .half import Half as Half
from .identity import Identity as Identity
from .qsgd import QSGD as QSGD
from .random_k import RandomK as RandomK
from .sign import Sign as Sign
from .top_k import TopK as TopK
