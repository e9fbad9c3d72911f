"""Reading: the value that an encoding was made of."""

from __future__ import annotations

import dataclasses
import enum
import json
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from .form import (
    ARRAY_TYPE,
    AS_BYTES,
    TREE,
    EncodingError,
    is_named_tuple,
    is_plain_dataclass,
    type_name,
)


def decode(data: bytes | bytearray | memoryview, types: Iterable[type] = ()) -> Any:
    """The value that `encode` was given, newly made.

    Tensors come back to the CUDA device they were on where there is one, else to the CPU.

    Args:
        data: what `encode` returned; memory that is the value's own is made, not shared.
        types: further dataclasses, enums and named tuples, such as are defined inside functions.

    Raises:
        EncodingError: the bytes are no encoding, or name a class that is not here or that differs.
    """
    data = bytes(data)
    try:
        tensors = load(data)
        text = _metadata(data)[TREE]
        return _Decoder(tensors, types).value(json.loads(text))
    except EncodingError:
        raise
    except KeyError as error:
        raise EncodingError(f"no encoding of a value: it lacks {error}") from None
    except (
        SafetensorError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RuntimeError,
        RecursionError,
        MemoryError,
        struct.error,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EncodingError(f"no encoding of a value: {reason}") from None


def _metadata(data: bytes) -> Mapping[str, str]:
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length])["__metadata__"]


class _Decoder:
    """Turns JSON's types into the value, with the tensors that belong to it."""

    def __init__(self, tensors: Mapping[str, Tensor], types: Iterable[type]) -> None:
        self._tensors = tensors
        self._types = {type_name(cls): cls for cls in types}
        self._made: dict[tuple[str, str], Tensor] = {}
        self._readers: dict[str, Callable[..., Any]] = {
            "int": lambda digits: int(_of(str, digits), 16),
            "float": lambda bits: struct.unpack(">d", bytes.fromhex(_of(str, bits)))[0],
            "tuple": lambda items: tuple(self._items(items)),
            "set": lambda items: set(self._items(items)),
            "frozenset": lambda items: frozenset(self._items(items)),
            "deque": lambda items, maxlen: deque(self._items(items), maxlen),
            "dict": lambda held: {key: self.value(v) for key, v in _of(dict, held).items()},
            "items": lambda items: {self.value(key): self.value(v) for key, v in _of(list, items)},
            "path": lambda text: Path(_of(str, text)),
            "bytes": lambda name: self._named(name, torch.uint8).numpy().tobytes(),
            "tensor": self._tensor,
            "array": self._array,
            "scalar": lambda name, dtype, shape: self._array(name, dtype, shape)[()],
            "enum": self._enum,
            "namedtuple": self._named_tuple,
            "dataclass": self._dataclass,
        }

    def value(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return self._items(tree)
        if not isinstance(tree, dict):
            return tree
        tree = cast("dict[str, Any]", tree)
        tag = next(iter(tree), "nothing")
        reader = self._readers.get(tag)
        if reader is None:
            raise EncodingError(f"no encoding of a value: {tag!r} is no kind of value")
        return reader(tree.pop(tag), **tree)

    def _items(self, trees: Any) -> list[Any]:
        return [self.value(tree) for tree in _of(list, trees)]

    def _named(self, name: str, dtype: torch.dtype) -> Tensor:
        held = self._tensors[name]
        if held.dtype != dtype:
            raise EncodingError(f"no encoding of a value: tensor {name} is {held.dtype}")
        return held

    def _tensor(
        self,
        name: str,
        dtype: str | None = None,
        shape: list[int] | None = None,
        device: str = "cpu",
    ) -> Tensor:
        made = self._made.get((name, device))
        if made is None:
            made = self._tensors[name]
            if dtype is not None and shape is not None:
                made = self._named(name, torch.uint8).view(AS_BYTES[dtype]).reshape(shape)
            there = torch.device(device)
            if there.type == "cuda" and (there.index or 0) < torch.cuda.device_count():
                made = made.to(there)
            self._made[name, device] = made
        return made

    def _array(self, name: str, dtype: str, shape: list[int]) -> Any:
        if ARRAY_TYPE.fullmatch(dtype) is None:
            raise EncodingError(f"no encoding of a value: {dtype!r} is no type of array")
        octets = self._tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        held = np.frombuffer(octets, np.dtype(dtype)) if octets else np.empty(0, np.dtype(dtype))
        return held.reshape(shape).copy()

    def _enum(self, name: str, member: str) -> Any:
        return self._type(name, lambda cls: issubclass(cls, enum.Enum)).__members__[member]

    def _named_tuple(self, name: str, fields: dict[str, Any]) -> Any:
        cls = self._type(name, is_named_tuple)
        held = self._fields(name, cls._fields, fields)
        return tuple.__new__(cls, [held[field] for field in cls._fields])

    def _dataclass(self, name: str, fields: dict[str, Any]) -> Any:
        cls = self._type(name, is_plain_dataclass)
        declared = [field.name for field in dataclasses.fields(cls)]
        extra = [field for field in fields if field not in declared and not hasattr(cls, field)]
        made = object.__new__(cls)
        for field, held in self._fields(name, [*declared, *extra], fields).items():
            object.__setattr__(made, field, held)
        return made

    def _fields(self, name: str, declared: Iterable[str], fields: Any) -> dict[str, Any]:
        found, wanted = _of(dict, fields), list(declared)
        for field in (*wanted, *found):
            if field not in found or field not in wanted:
                lacks = "lacks" if field in wanted else "has"
                raise EncodingError(f"{name} differs here: what was written {lacks} {field!r}")
        return {field: self.value(held) for field, held in found.items()}

    def _type(self, name: str, is_such: Callable[[type], bool]) -> Any:
        found: Any = self._types.get(name)
        if found is None:
            module, _, qualname = _of(str, name).partition(":")
            found = sys.modules.get(module)
            for part in qualname.split("."):
                # Not getattr, which a module may answer by importing.
                found = vars(found).get(part) if hasattr(found, "__dict__") else None
        if not isinstance(found, type) or type_name(found) != name or not is_such(found):
            raise EncodingError(
                f"no class {name!r} of its kind is here: import its module first, "
                "or give the class in types"
            )
        return found


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise EncodingError(f"no encoding of a value: {value!r:.40} where {kind.__name__} is due")
    return value
