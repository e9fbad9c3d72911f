"""The form of an encoding: what its writer and its reader have in common."""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from typing import Any, cast

import torch
from torch import Tensor

TREE = "offbeat"
"""Key of the metadata that holds the JSON text."""
NATIVE = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
AS_BYTES = {
    name: cast(torch.dtype, getattr(torch, name))
    for name in (
        *("complex32", "complex64", "complex128", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if hasattr(torch, name)
}
"""Kinds of tensors that safetensors lacks, or lacked: kept as their bytes."""
ARRAY_TYPE = re.compile(r"[<>|][biufcSUmM]\d+(\[\w+\])?")
"""Kinds of arrays, as `numpy.dtype.str` writes them: none that holds objects."""
_BUILT_IN = (int, float, str, bytes, tuple, list, dict, set, frozenset, deque, BaseException)
"""What a dataclass could inherit contents from, besides its fields."""


class EncodingError(ValueError):
    """A value that has no encoding, or bytes that are none. The text is one line."""


def type_name(cls: type) -> str:
    """The name under which a class is found again: `module:qualname`."""
    # What is __main__ here is __mp_main__ in a process that multiprocessing has started.
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    return f"{module}:{cls.__qualname__}"


def is_named_tuple(cls: Any) -> bool:
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def is_plain_dataclass(cls: type) -> bool:
    """Whether its instances hold nothing but attributes."""
    return dataclasses.is_dataclass(cls) and not issubclass(cls, (*_BUILT_IN, Tensor))
