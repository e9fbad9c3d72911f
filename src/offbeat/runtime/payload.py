"""Payload of a DATA frame: its parts, each in the frame itself or lent in a slot.

It begins with a table: the number of parts, then for each the slot (`IN_FRAME` if none), the loan's
token, the offset in the slot and the length. The parts in the frame follow, each aligned.
"""

import functools
import struct
from collections.abc import Callable, Sequence

from .framing import FrameError
from .slots import Loan

ALIGNMENT = 64
IN_FRAME = 0xFFFF_FFFF
_PADDINGS = [bytes(length) for length in range(ALIGNMENT)]
_COUNT = struct.Struct("!I")
_ENTRY = struct.Struct("!IQQQ")


def compose(parts: Sequence[bytes | memoryview | Loan]) -> list[bytes | memoryview]:
    """What to write, in this order; the bytes of the parts are not copied. Views are of bytes."""
    table = _table(len(parts))
    entries = [len(parts)]
    written: list[bytes | memoryview] = [b""]
    end = table.size
    for part in parts:
        if isinstance(part, Loan):
            entries += (part.slot.number, part.token, part.offset, part.length)
            continue
        length = len(part)
        entries += (IN_FRAME, 0, 0, length)
        if length:
            padding = -end % ALIGNMENT
            written += (_PADDINGS[padding], part)
            end += padding + length
    written[0] = table.pack(*entries)
    return written


@functools.cache
def _table(count: int) -> struct.Struct:
    return struct.Struct(_COUNT.format + _ENTRY.format[1:] * count)


def split(
    payload: memoryview, borrow: Callable[[int, int, int, int], memoryview]
) -> list[memoryview]:
    """The parts of a payload; `borrow` gives slot, token, offset and length their bytes.

    Raises:
        FrameError: it is no payload.
    """
    if payload.nbytes < _COUNT.size:
        raise FrameError(f"payload of {payload.nbytes} bytes")
    (count,) = _COUNT.unpack_from(payload)
    end = _COUNT.size + count * _ENTRY.size
    if end > payload.nbytes:
        raise FrameError(f"payload of {payload.nbytes} bytes with a table of {count} parts")
    parts: list[memoryview] = []
    for slot, token, offset, length in _ENTRY.iter_unpack(payload[_COUNT.size : end]):
        if slot != IN_FRAME:
            parts.append(borrow(slot, token, offset, length))
        elif length == 0:
            parts.append(payload[:0])
        else:
            start = end + -end % ALIGNMENT
            end = start + length
            if end > payload.nbytes:
                raise FrameError(f"payload of {payload.nbytes} bytes with a part up to {end}")
            parts.append(payload[start:end])
    if end != payload.nbytes:
        raise FrameError(f"payload of {payload.nbytes} bytes of which {end} are parts")
    return parts
