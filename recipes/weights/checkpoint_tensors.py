"""The model's tensors in Composer's checkpoints, full and sharded.

A full checkpoint is a pickle beside raw tensor bytes. Only its table of contents is read, by an unpickler that calls
nothing from the file (every object but a tensor becomes a placeholder), so it cannot run code here and the optimizer's
states are never loaded. A sharded one is read by torch's own reader, a tensor at a time.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.weights.number_types import SIZES
from recipes.weights.tensor_files import Entry, TensorFiles

_PIECE = 1 << 22  # bytes that a thread reads at once
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


def checkpoint_file(path: Path) -> TensorFiles:
    """The model's tensors in a Composer checkpoint of one file (`state_dict_type: full`), by their names in the model.

    Raises:
        ValueError: the file is no checkpoint, or is cut off.
    """
    entries = {}
    with path.open("rb") as file:
        for name, tensor, member in _model_tensors(path):
            offset = _start_of(file, member) + tensor.offset * SIZES[tensor.storage.dtype]
            if not tensor.is_contiguous:
                raise ValueError(f"{path}: {name} is not stored row by row, which Composer does not write")
            entries[plain_name(name)] = Entry(path, tensor.storage.dtype, tensor.shape, offset)
    return TensorFiles(entries)


def verify_file(path: Path) -> None:
    """Compare the bytes of the model's tensors with the CRC-32 that torch wrote beside each.

    Raises:
        ValueError: they are others; says of which tensor.
    """
    with path.open("rb") as file:
        members = {member.filename: (name, member) for name, _, member in _model_tensors(path)}
        starts = [_start_of(file, member) for _, member in members.values()]

        def checksum(start: int, member: zipfile.ZipInfo) -> int:
            found, end = 0, start + member.file_size
            while start < end and (piece := os.pread(file.fileno(), min(end - start, _PIECE), start)):
                start, found = start + len(piece), zlib.crc32(piece, found)
            return found

        with ThreadPoolExecutor(TensorFiles.readers) as threads:
            found = threads.map(checksum, starts, (member for _, member in members.values()))
            for (name, member), got in zip(members.values(), found, strict=True):
                if got != member.CRC:
                    text = f"the bytes of {plain_name(name)} are not those that were saved (CRC-32 {got:08x}"
                    raise ValueError(f"{path} is damaged: {text}, expected {member.CRC:08x}); take another copy of it")


def hf_config_in(path: Path) -> dict[str, Any] | None:
    """config.json of transformers that Composer keeps in a checkpoint file; None where there is none.

    `architectures` is the class of the model that was saved, without its module.
    """
    held: Any = _contents(path)[0]
    for key in ("integrations", "huggingface", "model", "config"):
        held = held.get(key) if isinstance(held, Mapping) else None
    content = held.get("content") if isinstance(held, Mapping) else None
    if not isinstance(content, Mapping):
        return None
    return {**content, "architectures": [str(held.get("class")).rpartition(".")[2]]}


def _model_tensors(path: Path) -> Iterator[tuple[str, _Tensor, zipfile.ZipInfo]]:
    """The model's tensors with their names in the checkpoint, and the member of the file that each lies in."""
    state, places, prefix = _contents(path)
    model = state.get("model")
    if not isinstance(model, Mapping):
        raise ValueError(f"{path} is no Composer checkpoint: it has no state.model")
    for name, tensor in model.items():
        if isinstance(tensor, _Tensor):
            member = places.get(f"{prefix}data/{tensor.storage.key}")
            if member is None:
                raise ValueError(f"{path} is no whole checkpoint: the bytes of {name} are not in it")
            yield str(name), tensor, member


def _contents(path: Path) -> tuple[Mapping[Any, Any], dict[str, zipfile.ZipInfo], str]:
    """What stands under `state` in a checkpoint file, its members by their names, and what their names begin with."""
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
    return (state if isinstance(state, Mapping) else {}), places, prefix


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

    readers = 1  # it keeps the last tensor

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
