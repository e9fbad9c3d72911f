"""Payload of a DATA frame: its parts, each in the frame itself or lent in a slot.

It begins with a table: the number of parts, then for each the slot (`IN_FRAME` if none), the loan's
token, the offset in the slot and the length. The parts in the frame follow, each aligned.
"""

import struct
from collections.abc import Callable, Sequence

from .framing import FrameError
from .slots import Loan

ALIGNMENT = 64
IN_FRAME = 0xFFFF_FFFF
_PADDING = memoryview(bytes(ALIGNMENT))
_COUNT = struct.Struct("!I")
_ENTRY = struct.Struct("!IQQQ")


def compose(parts: Sequence[memoryview | Loan]) -> list[memoryview]:
    """What to write, in this order; the bytes of the parts are not copied."""
    table = bytearray(_COUNT.size + len(parts) * _ENTRY.size)
    _COUNT.pack_into(table, 0, len(parts))
    written = [memoryview(table)]
    place, end = _COUNT.size, len(table)
    for part in parts:
        if isinstance(part, Loan):
            entry = (part.slot.number, part.token, part.offset, part.length)
        else:
            entry = (IN_FRAME, 0, 0, part.nbytes)
            if part.nbytes:
                padding = -end % ALIGNMENT
                if padding:
                    written.append(_PADDING[:padding])
                written.append(part)
                end += padding + part.nbytes
        _ENTRY.pack_into(table, place, *entry)
        place += _ENTRY.size
    return written


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
