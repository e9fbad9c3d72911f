"""Messages: frozen records of tensors and numbers, with their wire form.

A message class is declared in the file of the method that sends it:

    @message
    class Push:
        gradient: Tensor  # (d,)
        taken_at: int

On the wire a message is a fixed-size header (its kind and every number; of every tensor its dtype
and shape) and the tensors' bytes, each a part of one frame. Nothing is ever pickled.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, dataclass_transform, get_type_hints

import torch
from torch import Tensor

from .runtime.slots import SHARED_FROM, Pool

T = TypeVar("T")

MAX_DIMENSIONS = 4
DTYPES: tuple[torch.dtype, ...] = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
_DTYPE_CODES: Mapping[torch.dtype, int] = {dtype: code for code, dtype in enumerate(DTYPES)}
_NO_EXTENTS = [(0,) * (MAX_DIMENSIONS - dimensions) for dimensions in range(MAX_DIMENSIONS + 1)]
_NUMBERS: Mapping[type, str] = {int: "q", float: "d", bool: "?"}
_ACCEPTED: Mapping[type, tuple[type, ...]] = {
    Tensor: (Tensor,),
    int: (int,),
    float: (float, int),
    bool: (bool,),
}
_TENSOR_FORMAT = f"BB{MAX_DIMENSIONS}q"
_KIND = struct.Struct("<I")

Buffer: TypeAlias = bytearray | memoryview
"""Writable: a message's tensors may be written."""


class MessageError(ValueError):
    """A message that cannot be declared, packed or parsed."""


class Codec:
    """Wire form of one message class."""

    def __init__(self, cls: type) -> None:
        hints = _field_types(cls)
        self.cls = cls
        self.name = f"{cls.__module__}:{cls.__qualname__}"
        self.kind = zlib.crc32(self.name.encode())
        self.fields = tuple(hints)
        self.tensors = tuple(name for name, hint in hints.items() if hint is Tensor)
        self.numbers = tuple(name for name, hint in hints.items() if hint is not Tensor)
        self.header = struct.Struct(
            "<I"
            + "".join(_NUMBERS[hints[name]] for name in self.numbers)
            + _TENSOR_FORMAT * len(self.tensors)
        )
        self._accepted = tuple((name, _ACCEPTED[hint]) for name, hint in hints.items())

    def size(self, message: object) -> int:
        """Bytes of the message on the wire, padding left out."""
        total = self.header.size
        for name in self.tensors:
            total += message.__dict__[name].nbytes
        return total

    def copy(self, message: T) -> T:
        """The message by value: what the sender does to its tensors later does not show.

        Raises:
            MessageError: a value of another type than declared.
        """
        duplicate = object.__new__(self.cls)
        values = dict(message.__dict__)
        self._require_declared(values)
        for name in self.tensors:
            values[name] = values[name].clone()
        duplicate.__dict__.update(values)
        return duplicate  # pyright: ignore[reportReturnType]

    def to(self, message: T, device: torch.device) -> T:
        """The message with its tensors on that device; itself if they are there."""
        if all(message.__dict__[name].device == device for name in self.tensors):
            return message
        moved = object.__new__(self.cls)
        moved.__dict__.update(message.__dict__)
        for name in self.tensors:
            moved.__dict__[name] = message.__dict__[name].to(device)
        return moved  # pyright: ignore[reportReturnType]

    def parts(self, message: object, pool: Pool | None = None) -> tuple[bytes, *tuple[Tensor, ...]]:
        """The message as its header and its tensors, all contiguous and on the CPU.

        A tensor that is so already is not copied; another is, if large into a slot of `pool`.

        Raises:
            MessageError: a value of another type than declared, or that has no wire form.
        """
        values = message.__dict__
        self._require_declared(values)
        tensors: list[Tensor] = []
        described: list[int] = []
        for name in self.tensors:
            tensor: Tensor = values[name]
            code, dimensions = _DTYPE_CODES.get(tensor.dtype), tensor.dim()
            if code is None or dimensions > MAX_DIMENSIONS:
                raise MessageError(
                    f"{self.name}.{name} is a {tensor.dtype} tensor of {dimensions} dimensions; "
                    f"messages carry at most {MAX_DIMENSIONS} and {', '.join(map(str, DTYPES))}"
                )
            described += (code, dimensions, *tensor.shape, *_NO_EXTENTS[dimensions])
            tensors.append(_sendable(tensor, pool))
        numbers = [*map(values.__getitem__, self.numbers)]
        try:
            packed = self.header.pack(self.kind, *numbers, *described)
        except struct.error as error:
            held = ", ".join(f"{n} = {v}" for n, v in zip(self.numbers, numbers, strict=True))
            raise MessageError(f"{self.name}: {error} ({held})") from None
        return (packed, *tensors)

    def unpack(self, parts: Sequence[Buffer], at: int = 0) -> Any:
        """The message whose tensors are views of the parts after the first, its header.

        Args:
            at: where in the first part the header begins.

        Raises:
            MessageError: the parts are no message of this class.
        """
        packed, *bodies = parts
        length = len(packed) - at
        if length != self.header.size or len(bodies) != len(self.tensors):
            raise MessageError(
                f"{self.name}: a header of {length} bytes and {len(bodies)} tensors where "
                f"{self.header.size} and {len(self.tensors)} are needed"
            )
        _, *values = self.header.unpack_from(packed, at)
        contents: dict[str, Any] = dict(zip(self.numbers, values, strict=False))
        first = len(self.numbers)
        for name, body in zip(self.tensors, bodies, strict=True):
            code, dimensions = values[first], values[first + 1]
            shape = values[first + 2 : first + 2 + dimensions]
            first += 2 + MAX_DIMENSIONS
            if code >= len(DTYPES) or dimensions > MAX_DIMENSIONS or min(shape, default=0) < 0:
                raise MessageError(f"{self.name}.{name}: not a tensor: dtype {code}, shape {shape}")
            dtype, count = DTYPES[code], math.prod(shape)
            if count * dtype.itemsize != len(body):
                raise MessageError(
                    f"{self.name}.{name}: shape {shape} needs {count * dtype.itemsize} bytes, "
                    f"there are {len(body)}"
                )
            flat = torch.frombuffer(body, dtype=dtype) if count else torch.empty(0, dtype=dtype)
            try:
                contents[name] = flat if dimensions == 1 else flat.view(shape)
            except RuntimeError:  # An empty tensor with extents beyond all bounds.
                raise MessageError(f"{self.name}.{name}: not a tensor: shape {shape}") from None
        message = object.__new__(self.cls)
        message.__dict__.update(contents)
        return message

    def _require_declared(self, values: Mapping[str, Any]) -> None:
        for name, accepted in self._accepted:
            if not isinstance(values[name], accepted):
                raise MessageError(
                    f"{self.name}.{name} is declared {accepted[0].__name__} and holds "
                    f"{type(values[name]).__name__}"
                )


_BY_TYPE: dict[type, Codec] = {}
_BY_KIND: dict[int, Codec] = {}


@dataclass_transform(frozen_default=True)
def message(cls: type[T]) -> type[T]:
    """Declare a message: a frozen dataclass whose fields are `Tensor`, `int`, `float` or `bool`.

    Raises:
        MessageError: a field of another type.
    """
    record = dataclasses.dataclass(frozen=True, eq=False)(cls)
    codec = Codec(record)
    known = _BY_KIND.get(codec.kind)
    if known is not None and known.name != codec.name:
        raise MessageError(f"rename {codec.name}: its wire id is that of {known.name}")
    _BY_TYPE[record] = codec
    _BY_KIND[codec.kind] = codec
    return record


def codec_of(cls: type) -> Codec:
    """The codec of a message class.

    Raises:
        MessageError: the class was not declared with `@message`.
    """
    try:
        return _BY_TYPE[cls]
    except KeyError:
        raise MessageError(
            f"{cls.__qualname__} is not a message; declare the class with @offbeat.message"
        ) from None


def unpack(parts: Sequence[Buffer], at: int = 0) -> Any:
    """The message that these parts are; its tensors are views of them, on the CPU.

    Args:
        at: where in the first part its header begins.

    Raises:
        MessageError: an unknown kind, or parts that do not fit it.
    """
    if not parts or len(parts[0]) - at < _KIND.size:
        raise MessageError(f"{[len(part) for part in parts]} bytes are no message")
    (kind,) = _KIND.unpack_from(parts[0], at)
    codec = _BY_KIND.get(kind)
    if codec is None:
        raise MessageError(f"unknown kind of message {kind:#010x}")
    return codec.unpack(parts, at)


def _sendable(tensor: Tensor, pool: Pool | None) -> Tensor:
    # Not detached in vain: the transport asks the very tensor whether it was changed since.
    if tensor.is_cpu and tensor.is_contiguous():
        return tensor.detach() if tensor.requires_grad else tensor
    if pool is None or tensor.nbytes < SHARED_FROM:
        return tensor.detach().contiguous().cpu()
    copied = pool.tensor(tensor.numel(), tensor.dtype).view(tensor.shape)
    return copied.copy_(tensor.detach())


def _field_types(cls: type) -> dict[str, type]:
    # A method may be written inside a function (a test, a notebook), where its names are local.
    frame = sys._getframe(3)
    hints: dict[str, Any] = get_type_hints(cls, localns={**frame.f_locals, "Tensor": Tensor})
    allowed: Callable[[Any], bool] = lambda hint: hint is Tensor or hint in _NUMBERS  # noqa: E731
    for field in dataclasses.fields(cls):
        if not allowed(hints[field.name]):
            raise MessageError(
                f"{cls.__qualname__}.{field.name} is declared {field.type}; "
                "a message holds Tensor, int, float and bool"
            )
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
