"""Files here and in object stores: paths, and URLs (s3://, gs://, hf://) through fsspec.

A URL's scheme decides what must be installed: s3:// wants s3fs, gs:// gcsfs, hf:// comes with huggingface_hub.
"""

import contextlib
import datetime
import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep.errors import PrepError

_BLOCK_BYTES = 8 << 20  # that a remote file is read in
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")  # names of fsspec's implementations
_MARKS = ("ETag", "etag", "blob_id", "Content-MD5", "Digest", "md5", "Last-Modified")  # where there is no time


@dataclass(frozen=True)
class FileState:
    """What tells one state of a file from another.

    bytes: its size. mtime_ns: its time of change in ns since 1970; of a file in a store that gives another mark of its
    content instead, a number made of that; 0: unknown.
    """

    bytes: int
    mtime_ns: int


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def local_output(given: str) -> Path:
    """The path of an output that has to be on this machine.

    Raises:
        PrepError: it is a URL, or empty, which would be the working directory.
    """
    if not given:
        raise PrepError("--out '': expected a path to write to.")
    if is_remote(given):
        raise PrepError(f"--out {given}: expected a path on this machine; data_prep.pretrain alone writes to URLs.")
    return Path(os.path.expanduser(given))


def open_file(path: str) -> BinaryIO:
    """A file to read, without a buffer where it is here.

    Raises:
        OSError: what the file system says.
    """
    if not is_remote(path):
        return cast(BinaryIO, open(path, "rb", buffering=0))
    with remote_errors(path):
        filesystem, inner = filesystem_of(path)
        return cast(BinaryIO, filesystem.open(inner, "rb", block_size=_BLOCK_BYTES, cache_type="readahead"))


def state_of(path: str) -> FileState:
    """The state of a file.

    Raises:
        OSError: what the file system says, FileNotFoundError where there is none.
    """
    if not is_remote(path):
        status = os.stat(path)
        return FileState(status.st_size, status.st_mtime_ns)
    with remote_errors(path):
        filesystem, inner = filesystem_of(path)
        filesystem.invalidate_cache()
        found = filesystem.info(inner)
    if found["size"] is None:
        raise PrepError(f"{path}: its server does not say how large it is; fetch it, and give the file.")
    return FileState(int(found["size"]), _time_ns(found))


def list_files(url: str) -> list[str]:
    """The URLs that a URL of a file, a folder (its own files) or a glob stands for, sorted; none: nothing is there."""
    scheme, _, place = url.partition("://")
    if not place:
        raise PrepError(f"{url}: expected a file or folder behind {scheme}://.")
    with remote_errors(url):
        filesystem, inner = filesystem_of(url)
        if any(character in url for character in "*?[") and not filesystem.exists(inner):
            found = [name for name, entry in filesystem.glob(inner, detail=True).items() if entry["type"] == "file"]
        else:
            try:
                kind = filesystem.info(inner)["type"]  # not isfile, to which a store that cannot be reached is empty
            except FileNotFoundError as error:
                if _is_missing(error, url):
                    return []
                raise
            if kind == "file":
                return [url]
            found = [entry["name"] for entry in filesystem.ls(inner, detail=True) if entry["type"] == "file"]
    return sorted(f"{scheme}://{str(name).removeprefix(f'{scheme}://')}" for name in found)


def filesystem_of(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        PrepError: a scheme that is unknown or whose package is not installed.
    """
    import fsspec  # only here: 0.1 s
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    if "S3_ENDPOINT_URL" in os.environ:  # as Streaming calls it
        os.environ.setdefault("AWS_ENDPOINT_URL_S3", os.environ["S3_ENDPOINT_URL"])
    try:
        filesystem, inner = url_to_fs(url)
    except ImportError as error:
        raise PrepError(f"{url}: {scheme}:// cannot be opened here: {error}") from error
    except ValueError as error:
        if scheme in fsspec.available_protocols():
            raise PrepError(f"{url}: {error}") from error
        raise PrepError(f"{url}: unknown scheme {scheme}://; expected s3, gs, hf or another of fsspec's.") from error
    return filesystem, str(inner)


@contextlib.contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Whatever a store's client raises, as an OSError that names the URL; of a path nothing is changed.

    Raises:
        PrepError: a server that gives whole files only.
    """
    try:
        yield
    except PrepError:
        raise
    except OSError as error:
        if error.filename is not None or not is_remote(url):
            raise
        if _is_missing(error, url):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
        words = error.strerror or str(error)
        if isinstance(error, FileNotFoundError):  # what happened is in its cause
            words = f"{type(error.__cause__).__name__}: {error.__cause__}"
        raise OSError(error.errno or errno.EIO, words, url) from error
    except Exception as error:  # botocore's, google's and others have no common class
        if not is_remote(url):
            raise
        if "support range requests" in str(error):  # fsspec's words, a ValueError
            raise PrepError(f"{url}: its server does not serve parts of files; fetch it, and give the file.") from error
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", url) from error


def _is_missing(error: OSError, url: str) -> bool:
    """Whether a file is not there. fsspec says so too of every HTTP server that does not answer as it should."""
    if not isinstance(error, FileNotFoundError):
        return False
    cause = error.__cause__
    return not url.startswith("http") or cause is None or getattr(cause, "status", None) == 404


def _time_ns(found: dict[str, Any]) -> int:
    for name in _TIMES:
        value = found.get(name)
        if isinstance(value, datetime.datetime):
            return int(value.timestamp() * 1_000_000) * 1000
        if isinstance(value, (int, float)):
            return int(value * 1_000_000) * 1000
    mark = next((str(found[name]) for name in _MARKS if found.get(name)), "")
    return int.from_bytes(hashlib.sha256(mark.encode()).digest()[:6], "little") if mark else 0
