"""Tensors in files, read a few rows at a time: safetensors folders and Composer's checkpoints, full and sharded.

A checkpoint is a pickle beside raw tensor bytes. Only its table of contents is read, by an unpickler that calls
nothing from the file (every object but a tensor becomes a placeholder), so a checkpoint cannot run code here and the
optimizer's states are never loaded. Reading holds one buffer, whatever the size of the file.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Bytes of a number, by safetensors' name of its type.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `offset` bytes into `file`, its numbers in order."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return SIZES[self.dtype] * math.prod(self.shape[1:])

    @property
    def bytes(self) -> int:
        return SIZES[self.dtype] * math.prod(self.shape)


class TensorFiles:
    """Named tensors in files. Close it, or use it in a `with`."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = dict(entries)
        self._open: dict[Path, int] = {}

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def rows(self, name: str, first: int = 0, count: int | None = None) -> Any:
        """`count` rows of a tensor from row `first` on (all without one), as a torch tensor of the file's type.

        Raises ValueError where the file ends before they do.
        """
        import torch

        entry = self.entries[name]
        rows = (entry.shape[0] if entry.shape else 1) - first if count is None else count
        shape = (rows, *entry.shape[1:]) if entry.shape else ()
        buffer = torch.empty(entry.row_bytes * rows if entry.shape else entry.bytes, dtype=torch.uint8)
        self._read(entry, first * entry.row_bytes, memoryview(buffer.numpy()))  # type: ignore[arg-type]
        return buffer.view(torch_type(entry.dtype)).view(shape)

    def _read(self, entry: Entry, start: int, into: memoryview) -> None:
        if entry.file not in self._open:
            self._open[entry.file] = os.open(entry.file, os.O_RDONLY)
        done = 0
        while done < len(into):
            read = os.preadv(self._open[entry.file], [into[done:]], entry.offset + start + done)
            if not read:
                raise ValueError(f"{entry.file} is truncated: it ends inside a tensor")
            done += read


def torch_type(dtype: str) -> Any:
    import torch

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8"}
    return getattr(torch, names.get(dtype) or f"int{dtype[1:]}")


# --- safetensors --------------------------------------------------------------------------------------------------


def safetensors_folder(folder: Path) -> TensorFiles:
    """The tensors of model.safetensors, or of the shards that model.safetensors.index.json lists.

    Raises:
        ValueError: no safetensors, a shard that is missing or cut off.
    """
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{index} cannot be read: {error}") from None
    entries: dict[str, Entry] = {}
    for name in files:
        if not (folder / name).is_file():
            others = ", ".join(sorted(p.name for p in folder.glob("*.bin"))[:3])
            hint = f"; it has {others}: save it as safetensors first" if others else ""
            raise ValueError(f"{folder} has no {name}{hint}")
        entries |= read_safetensors(folder / name)
    return TensorFiles(entries)


def read_safetensors(path: Path) -> dict[str, Entry]:
    """The table of contents of one file. Raises ValueError where it is none, or is cut off."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        entries = {}
        for name, about in header.items():
            if name == "__metadata__":
                continue
            start, stop = about["data_offsets"]
            if 8 + length + stop > size:
                raise ValueError(f"it has {size:,} bytes of at least {8 + length + stop:,}")
            entries[name] = Entry(path, about["dtype"], tuple(about["shape"]), 8 + length + start)
        return entries
    except (ValueError, KeyError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


# --- checkpoints --------------------------------------------------------------------------------------------------


def checkpoint_file(path: Path) -> TensorFiles:
    """The model's tensors in a Composer checkpoint of one file (`state_dict_type: full`), by their names in the model.

    Raises:
        ValueError: the file is no checkpoint, or is cut off.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if pickled is None:
                raise ValueError(f"{path} is no checkpoint: there is no data.pkl in it")
            prefix = pickled.removesuffix("data.pkl")
            with archive.open(pickled) as stream:
                content = _Contents(stream).load()
            places = {info.filename: info for info in archive.infolist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no whole checkpoint: {error}") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {type(error).__name__}: {error}") from None
    state = content.get("state", content) if isinstance(content, Mapping) else {}
    model = state.get("model") if isinstance(state, Mapping) else None
    if not isinstance(model, Mapping):
        raise ValueError(f"{path} is no Composer checkpoint: it has no state.model")
    entries = {}
    with path.open("rb") as file:
        for name, tensor in model.items():
            if isinstance(tensor, _Tensor):
                info = places[f"{prefix}data/{tensor.storage.key}"]
                offset = _start_of(file, info) + tensor.offset * SIZES[tensor.storage.dtype]
                if not tensor.is_contiguous:
                    raise ValueError(f"{path}: {name} is not stored row by row, which Composer does not write")
                entries[plain_name(str(name))] = Entry(path, tensor.storage.dtype, tensor.shape, offset)
    return TensorFiles(entries)


def plain_name(name: str) -> str:
    """A parameter's name in the language model: without the Composer model around it, DDP, and what wraps blocks."""
    name = name.removeprefix("module.").removeprefix("model.")
    return (
        name.replace("_checkpoint_wrapped_module.", "").replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", "")
    )


def _start_of(file: Any, info: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed member begin: behind its local header, whose length is in it."""
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + int(name) + int(extra)


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True


class _Dict(dict[Any, Any]):
    """An ordered dictionary that, as a state dict's does, may have attributes."""


class _Placeholder:
    """Stands for any object of a checkpoint that is no tensor: it takes everything and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Placeholder:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Placeholder:
        return self

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def add(self, _: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


class _Contents(pickle.Unpickler):
    """Reads the structure of a checkpoint without calling anything that it names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) in (("torch._utils", "_rebuild_parameter"), ("torch._tensor", "_rebuild_from_type_v2")):
            return lambda first, *_: first
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return type(name, (_Placeholder,), {})

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, _ = pid
        return _Storage(str(key), dtype if isinstance(dtype, str) else "U8")


class ShardedCheckpoint(TensorFiles):
    """The model's tensors in a folder that FSDP2 wrote (`state_dict_type: sharded`), one tensor in memory at a time."""

    def __init__(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        super().__init__({})
        try:
            metadata = dcp.FileSystemReader(str(folder)).read_metadata()
        except Exception as error:  # a pickle that is cut off can raise anything
            raise ValueError(f"{folder} is no whole sharded checkpoint: {type(error).__name__}: {error}") from None
        self._folder = folder
        self._kept: tuple[str, Any] | None = None
        self._keys: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, Any] = {}
        for key, about in metadata.state_dict_metadata.items():
            if key.startswith("state.model.") and isinstance(about, TensorStorageMetadata):
                name = plain_name(key.removeprefix("state.model."))
                self._keys[name], self._shapes[name] = key, tuple(about.size)
                self._types[name] = about.properties.dtype
        if not self._keys:
            raise ValueError(f"{folder} is no Composer checkpoint: it has no state.model")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self._shapes)

    def rows(self, name: str, first: int = 0, count: int | None = None) -> Any:
        if self._kept is None or self._kept[0] != name:
            self._kept = (name, self._load(name))
        whole = self._kept[1]
        return whole[first:] if count is None else whole[first : first + count]

    def _load(self, name: str) -> Any:
        import torch
        import torch.distributed.checkpoint as dcp

        key = self._keys[name]
        wanted = {key: torch.empty(self._shapes[name], dtype=self._types[name])}
        try:
            dcp.load(wanted, storage_reader=dcp.FileSystemReader(str(self._folder)), no_dist=True)
        except Exception as error:
            raise ValueError(f"{self._folder} is no whole sharded checkpoint: {name}: {error}") from None
        return wanted[key]
