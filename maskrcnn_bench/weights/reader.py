"""Reading files of weights without running what they may contain.

Four containers occur: a zip by ``torch.save``, its older pickle form, a plain pickle of numpy arrays (Detectron, detectron2), and
safetensors. Which one it is, the first bytes tell, never the file's name.
"""

from __future__ import annotations

import collections
import json
import math
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

_TORCH_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # the magic number that opens a file of torch < 1.6
_SAFETENSORS_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_WANTED = "expected weights: a .pth of torch.save, a .pkl of numpy arrays, or safetensors"
_RESAVE = "If you trust its origin, open it where it was written and save the tensors alone: torch.save(checkpoint['model'], 'new.pth')."


def read_file(path: str | Path) -> Any:
    """The content of a file of weights: dictionaries, lists, strings, numbers, tensors, and numpy arrays.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not weights, damaged, or holding objects that would have to be executed.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; {_WANTED}. Check MODEL.WEIGHT or --weights.")
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04") or _TORCH_LEGACY in head[:32]:
        return _read_torch(path)
    if head[:1] in (b"\x80", b"(", b"}", b"]", b"c"):
        return _read_pickle(path)
    if _is_safetensors(head, path.stat().st_size):
        return _read_safetensors(path)
    raise ValueError(_foreign(path, head))


# A damaged pickle is a random program for the unpickler; these are the ways in which it can end.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(RuntimeError, MemoryError, OverflowError, struct.error),
)


def _foreign(path: Path, head: bytes) -> str:
    """What to say about a file that is none of the containers."""
    start = head.lstrip().lower()
    if not head:
        return f"{path} is empty; {_WANTED}. Download or save it again."
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return f"{path} is a web page, not weights: the address answered with HTML. Download the file itself again; {_WANTED}."
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a git-lfs pointer, not the weights. Run `git lfs pull` where it came from; {_WANTED}."
    return f"{path} is no known kind of file: it begins with {head[:16]!r}; {_WANTED}."


def _damaged(path: Path, why: Exception | str) -> ValueError:
    size = path.stat().st_size
    return ValueError(f"{path} ({size:,} bytes) is truncated or damaged ({why}); {_WANTED}. Compare its size with the source's.")


def _refused(path: Path, names: list[str]) -> ValueError:
    return ValueError(f"{path} holds objects that are not weights: {', '.join(names)}. Nothing in it was executed. {_RESAVE}")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """The only use numpy's pickles have for ``_codecs.encode``; other codecs would be programs."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding}")
    return text.encode("latin1")


_CODES = ("b1", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
"""Types of arrays that are weights."""
_TEXTS = "USO"
"""Types of arrays, without their sizes, that may stand beside weights: text, and Python's objects. Nobody needs what they hold."""


class _Dtype:
    """What a pickle says of a type; numpy's own, given a damaged state, takes the process down."""

    def __init__(self, code: Any, *flags: Any):
        self.code = str(code).lstrip("<>|=")
        self.order = ""

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in ("<", ">") else ""

    def resolve(self) -> np.dtype:
        if self.code not in _CODES:
            raise ValueError(f"an array of type {self.code!r}")
        return np.dtype(self.order + self.code)


class _Array:
    """What a pickle says of an array."""

    def __init__(self, *arguments: Any):
        self.state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def resolve(self) -> np.ndarray | None:
        """The array; None of text."""
        _, shape, dtype, fortran, content = self.state
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array without a type")
        if dtype.code[:1] in _TEXTS:
            return None
        content = content.encode("latin1") if isinstance(content, str) else bytes(content)
        order = "F" if fortran else "C"
        return np.frombuffer(content, dtype.resolve()).reshape(shape, order=order).copy(order)


def _from_buffer(content: Any, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", content)
    return array


def _scalar(dtype: _Dtype, content: Any = b"") -> _Array:
    return _from_buffer(content, dtype, (), "C")


def _resolved(value: Any, seen: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """The content with real arrays in the place of what was said of them.

    Args:
        seen: {id: (value, its content)} of what was met before: a list of one list twice, thirty deep, would never end.
    """
    seen = {} if seen is None else seen
    if id(value) not in seen:
        seen[id(value)] = (value, _content(value, seen))
    return seen[id(value)][1]


def _content(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    if isinstance(value, _Array):
        array = value.resolve()
        return array if array is None or array.shape else array[()]
    if isinstance(value, dict):
        return {_resolved(key, seen): _resolved(item, seen) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, seen) for item in value]
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        return tuple(_resolved(item, seen) for item in value)
    if isinstance(value, (_Dtype, type)) or callable(value):
        raise ValueError("something that is no value")
    return value


def _allowed() -> dict[tuple[str, str], Any]:
    """What a pickle of arrays may name. Numpy renamed its modules in 2.0; files carry either name."""
    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = _Array
        table[f"{core}.multiarray", "scalar"] = _scalar
        table[f"{core}.numeric", "_frombuffer"] = _from_buffer
    return table


class _Refusal(Exception):
    """A name outside the table."""


class _ArrayUnpickler(pickle._Unpickler):
    """Knows arrays, OrderedDict, and what pickle itself builds: strings, numbers, lists, dictionaries.

    It is the unpickler in Python: the other one's memory of objects is as long as the highest number in the file says.
    """

    allowed = _allowed()
    dispatch = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """Gives an object its state; a function would keep it for the files that follow."""
        if not isinstance(self.stack[-2], (_Array, _Dtype, collections.OrderedDict)):
            raise pickle.UnpicklingError("a state for something that has none")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise _Refusal(f"{module}.{name}")
        return self.allowed[module, name]


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_stand_ins()):
            return _resolved(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        names = _unsafe_names(str(error))
        if not names and _is_other_protocol(path):
            again = "Open it where it was written and save it again with pickle_protocol=2, which is what torch.save takes by itself."
            raise ValueError(f"{path} was pickled by another protocol than 2; {_WANTED}. {again}") from None
        raise (_refused(path, names) if names else _damaged(path, _first_sentence(error))) from None
    except _DAMAGE as error:
        raise _damaged(path, _first_sentence(error)) from None


def _first_sentence(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]


def _is_other_protocol(path: Path) -> bool:
    """Whether `pickle_protocol` was given to torch.save: its own reader knows the usual one only."""
    others = (b"\x80\x03", b"\x80\x04", b"\x80\x05")
    with path.open("rb") as file:
        if file.read(2) in others:
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                return file.read(2) in others
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, StopIteration):
        return False


def _unsafe_names(message: str) -> list[str]:
    """The classes and functions that torch's own restricted unpickler complained about."""
    return sorted(set(re.findall(r"GLOBAL (\w+(?:\.\w+)+)", message)))


def _stand_ins() -> list[Any]:
    """What `torch.load` gets in the place of numpy's classes, where scores or epochs were kept as numpy numbers."""
    return [(value, f"{module}.{name}") for (module, name), value in _allowed().items() if module.startswith("numpy")]


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return _unpickle(file)
        except _Refusal as refusal:
            raise _refused(path, [str(refusal)]) from None
        except _DAMAGE as error:
            raise _damaged(path, _first_sentence(error)) from None


def _unpickle(file: BinaryIO) -> Any:
    # Python 2 wrote Detectron's files: its byte strings are the arrays' content.
    return _resolved(_ArrayUnpickler(file, encoding="latin1").load())


def _is_safetensors(head: bytes, size: int) -> bool:
    """Eight bytes with the length of a JSON header, then the header."""
    return len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 100_000_000


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    try:
        header = json.loads(content[8 : 8 + length])
        body = memoryview(content)[8 + length :]
        return {name: _safetensor(entry, body) for name, entry in header.items() if name != "__metadata__"}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise _damaged(path, str(error)) from None


def _safetensor(entry: dict, body: memoryview) -> Tensor:
    start, end = entry["data_offsets"]
    if entry["dtype"] not in _SAFETENSORS_TYPES:
        raise ValueError(f"a tensor of type {entry['dtype']}, not one of {', '.join(_SAFETENSORS_TYPES)}")
    dtype, shape = _SAFETENSORS_TYPES[entry["dtype"]], entry["shape"]
    if not 0 <= start <= end <= len(body):
        raise ValueError(f"a tensor ends at byte {end} of {len(body)}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"a tensor of shape {shape} and type {entry['dtype']} has {end - start} bytes")
    if start == end:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(body[start:end]), dtype=dtype).reshape(shape)
