"""Encoding: values as bytes and back, without pickle.

The form is a safetensors file. Its tensors are named after where they lie in the value, and its
metadata holds the rest as one JSON text, in which an object's first key says what it is:

    {"tuple": [...]}  {"tensor": "states.Slow.start"}  {"dataclass": "module:Name", "fields": {...}}

Reading imports nothing and calls nothing that the bytes name: dataclasses, enums and named tuples
are found among the modules that are imported already, and filled in without their constructors.
"""

from .form import EncodingError as EncodingError
from .form import type_name as type_name
from .read import decode as decode
from .write import encode as encode
