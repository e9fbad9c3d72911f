"""Writing: a value as JSON and named tensors."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import struct
from collections import deque
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from .form import (
    ARRAY_TYPE,
    AS_BYTES,
    NATIVE,
    TREE,
    EncodingError,
    is_named_tuple,
    is_plain_dataclass,
    type_name,
)

_EXACT = 1 << 53
"""Integers below it are the same number to every reader of JSON."""


def encode(value: Any, replace: Callable[[Any], Any] = lambda value: value) -> bytes:
    """The bytes of a value, readable as a safetensors file.

    It may be made of None, bool, int, float, str, bytes, tensors, numpy arrays and scalars, list,
    tuple, dict, set, frozenset, deque, Path, and of dataclass instances, enums and named tuples. A
    tensor that occurs several times is written once. Tensors of other devices are noted as such.

    Args:
        replace: gives for a value that has no encoding one that has, to be written in its place.

    Raises:
        EncodingError: saying where in the value something else is.
    """
    encoder = _Encoder(replace)
    try:
        tree = encoder.tree(value, "")
        text = json.dumps(tree, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise EncodingError("the value contains itself, or is nested too deeply") from None
    return save(encoder.tensors, {TREE: text})


class _Encoder:
    """Turns a value into JSON's types, and collects its tensors."""

    def __init__(self, replace: Callable[[Any], Any]) -> None:
        self._replace = replace
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        self._storages: set[int] = set()
        self._kept: list[Any] = []
        """Temporary objects, so that their ids are not used again."""

    def tree(self, value: Any, at: str) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if abs(value) < _EXACT else {"int": f"{value:x}"}
        if kind is float:
            return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
        if kind is list:
            return self._items(value, at)
        if kind is tuple or kind is set or kind is frozenset:
            items = self._items(value, at)
            if kind is not tuple:
                # Of strings the order would change with every process.
                items.sort(key=json.dumps)
            return {kind.__name__: items}
        if kind is deque:
            return {"deque": self._items(value, at), "maxlen": value.maxlen}
        if kind is dict:
            return self._mapping(value, at)
        if kind is Tensor:
            return self._tensor(value, at)
        if kind is bytes:
            return {"bytes": self._add(_octets(value), at)}
        if isinstance(value, Path):
            return {"path": str(value)}
        if isinstance(value, np.ndarray | np.generic):
            return self._array(value, at)
        return self._record(value, kind, at)

    def _items(self, values: Iterable[Any], at: str) -> list[Any]:
        return [self.tree(item, _below(at, i)) for i, item in enumerate(values)]

    def _mapping(self, value: dict[Any, Any], at: str) -> Any:
        if all(type(key) is str for key in value):
            return {"dict": {key: self.tree(item, _below(at, key)) for key, item in value.items()}}
        items: list[Any] = []
        for i, (key, item) in enumerate(value.items()):
            name = _below(at, key if type(key) is str or type(key) is int else i)
            items.append([self.tree(key, f"{name}.key"), self.tree(item, name)])
        return {"items": items}

    def _record(self, value: Any, kind: type, at: str) -> Any:
        where = f"{at or 'the value'}: "
        if isinstance(value, enum.Enum):
            if kind.__members__.get(str(value.name)) is not value:
                raise EncodingError(f"{where}{value!r} is no single member of its enum")
            return {"enum": type_name(kind), "member": value.name}
        if is_named_tuple(kind):
            fields = {name: getattr(value, name) for name in kind._fields}
            return {"namedtuple": type_name(kind), "fields": self._fields(fields, at)}
        if not is_plain_dataclass(kind):
            other = self._replace(value)
            if other is not value:
                return self.tree(other, at)
            raise EncodingError(
                f"{where}{kind.__module__}.{kind.__qualname__} cannot be encoded; hold tensors, "
                "numbers, strings, their plain containers and dataclasses"
            )
        try:
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        except AttributeError as error:
            raise EncodingError(f"{where}{error}") from None
        for name, held in getattr(value, "__dict__", {}).items():
            beside = getattr(kind, name, None)
            # What a cached property holds follows from the fields.
            if name in fields or isinstance(beside, cached_property):
                continue
            if beside is not None:
                raise EncodingError(f"{where}{name} is its class's, and cannot be its own as well")
            fields[name] = held
        return {"dataclass": type_name(kind), "fields": self._fields(fields, at)}

    def _fields(self, fields: dict[str, Any], at: str) -> dict[str, Any]:
        return {name: self.tree(held, _below(at, name)) for name, held in fields.items()}

    def _tensor(self, value: Tensor, at: str) -> Any:
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise EncodingError(
                f"{at or 'the value'}: a tensor of layout {value.layout} on {value.device} "
                "cannot be encoded; make it dense"
            )
        if value.requires_grad:
            raise EncodingError(f"{at or 'the value'}: a tensor that requires grad; detach it")
        device = {} if value.device.type == "cpu" else {"device": str(value.device)}
        name = self._names.get(id(value))
        plain = value.dtype in NATIVE
        form = {} if plain else {"dtype": str(value.dtype)[6:], "shape": list(value.shape)}
        if name is None:
            held = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
            if not plain:
                if str(value.dtype)[6:] not in AS_BYTES:
                    raise EncodingError(f"{at or 'the value'}: {value.dtype} cannot be encoded")
                held = held.reshape(-1).view(torch.uint8)
            name = self._names[id(value)] = self._add(held, at)
            self._kept.append(value)
        return {"tensor": name} | form | device

    def _array(self, value: np.ndarray | np.generic, at: str) -> Any:
        array = np.array(value, order="C", copy=True)
        tag = "array" if isinstance(value, np.ndarray) else "scalar"
        kind = array.dtype.str
        if ARRAY_TYPE.fullmatch(kind) is None:
            raise EncodingError(f"{at or 'the value'}: an array of {array.dtype} has no encoding")
        form = {"dtype": kind, "shape": list(array.shape)}
        try:
            held = torch.from_numpy(array)
        except (TypeError, ValueError):  # Text, dates, another order of the bytes.
            held = None
        if held is None or held.dtype not in NATIVE:
            held = _octets(array.tobytes())
        return {tag: self._add(held, at)} | form

    def _add(self, tensor: Tensor, at: str) -> str:
        storage = tensor.untyped_storage().data_ptr()
        if storage and storage in self._storages:
            tensor = tensor.clone()  # safetensors refuses tensors that share memory.
        self._storages.add(tensor.untyped_storage().data_ptr())
        name = base = at or "value"
        count = 1
        while name in self.tensors or name == "__metadata__":
            count += 1
            name = f"{base}~{count}"
        self.tensors[name] = tensor
        return name


def _octets(data: bytes) -> Tensor:
    return torch.tensor(np.frombuffer(data, np.uint8))


def _below(at: str, part: Any) -> str:
    """The name of what lies in a value under `part`, of characters that do in every tool."""
    clean = re.sub(r"[^\w.-]", "_", str(part), flags=re.ASCII)
    return f"{at}.{clean}" if at else clean
