"""Payload of a DATA frame: its parts, each in the frame itself or lent in a slot.

It begins with a table: the number of parts and that of loans that the sender reads no more; then
for each part where it is, the slot, the loan's token, the offset in the slot and the length; then
the tokens of those loans. The parts in the frame follow, each aligned.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from enum import IntEnum

from .framing import FrameError
from .slots import Loan, Return

ALIGNMENT = 64


class Where(IntEnum):
    """Where a part is."""

    IN_FRAME = 0
    LENT = 1
    """In a slot of the sender's, to be read."""
    GIVEN = 2
    """In a slot of the sender's, to be written too."""
    RETURNED = 3
    """In a slot of the receiver's, which it has given the sender."""


_PADDINGS = [bytes(length) for length in range(ALIGNMENT)]
_IN_FRAME = Where.IN_FRAME.value
_IN_SLOTS = {where.value: where for where in Where if where is not Where.IN_FRAME}
_COUNTS = struct.Struct("!II")
_ENTRY = struct.Struct("!BIQQQ")


_TOKEN = struct.Struct("!Q")


def compose(
    parts: Sequence[bytes | memoryview | Loan | Return], released: Sequence[int] = ()
) -> list[bytes | memoryview]:
    """What to write, in this order; the bytes of the parts are not copied. Views are of bytes.

    `released` are the tokens of loans from the receiver.
    """
    table = _table(len(parts), len(released))
    entries = [len(parts), len(released)]
    written: list[bytes | memoryview] = [b""]
    end = table.size
    for part in parts:
        if isinstance(part, Loan):
            where = Where.GIVEN if part.given else Where.LENT
            entries += (where, part.slot.number, part.token, part.offset, part.length)
            continue
        if isinstance(part, Return):
            entries += (Where.RETURNED, part.slot, part.token, part.offset, part.length)
            continue
        length = len(part)
        entries += (_IN_FRAME, 0, 0, 0, length)
        if length:
            padding = -end % ALIGNMENT
            written += (_PADDINGS[padding], part)
            end += padding + length
    written[0] = table.pack(*entries, *released)
    return written


@functools.cache
def _table(parts: int, released: int) -> struct.Struct:
    return struct.Struct(_COUNTS.format + _ENTRY.format[1:] * parts + "Q" * released)


def split(
    payload: memoryview,
    borrow: Callable[[Where, int, int, int, int], memoryview],
    take_back: Callable[[int], object],
) -> list[memoryview]:
    """The parts of a payload; `borrow` finds those in slots, by what the table says of them.

    `take_back` is told the tokens of loans that the sender reads no more.

    Raises:
        FrameError: it is no payload.
    """
    if payload.nbytes < _COUNTS.size:
        raise FrameError(f"payload of {payload.nbytes} bytes")
    count, released = _COUNTS.unpack_from(payload)
    tokens = _COUNTS.size + count * _ENTRY.size
    end = tokens + released * _TOKEN.size
    if end > payload.nbytes:
        raise FrameError(
            f"payload of {payload.nbytes} bytes with a table of {count} parts and {released} loans"
        )
    if released:
        for (token,) in _TOKEN.iter_unpack(payload[tokens:end]):
            take_back(token)
    parts: list[memoryview] = []
    for where, slot, token, offset, length in _ENTRY.iter_unpack(payload[_COUNTS.size : tokens]):
        if where in _IN_SLOTS:
            parts.append(borrow(_IN_SLOTS[where], slot, token, offset, length))
        elif where != _IN_FRAME:
            raise FrameError(f"payload with a part in place {where}, which there is not")
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
