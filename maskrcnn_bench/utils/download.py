"""Published weights: from a name to a local file, downloaded at most once, and never half.

Where a file is looked for, in this order: where an earlier download put it; under its own name in the folder MODEL_DIR, which is how a
machine without a network gets its files; and in the folders in which torch's model zoo keeps them.
"""

from __future__ import annotations

import hashlib
import html
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from maskrcnn_bench.config.paths_catalog import foreign_address, import_file
from maskrcnn_bench.utils.comm import synchronize
from maskrcnn_bench.utils.files import write_atomically

_CHUNK = 1 << 20
# What the end of a path tells about the content: torch and mmdetection write the first digits of its SHA-256 behind a dash, detectron2
# those of its MD5 behind an underscore.
_HASHES_IN_NAMES = (
    ("sha256", re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")),
    ("md5", re.compile(r"/detectron2/.+/model_\w+_([0-9a-f]{6})\.pkl$")),
)
# Detectron gave all its files one name.
_COMMON_NAMES = ("model_final.pkl",)


def find_weights(name: str, paths_catalog: str, logger: logging.Logger) -> str:
    """The local file that a name means.

    Args:
        name: a file, an http(s) address, a catalog:// name, or a name as another project writes it (detectron2://..., ...).
        paths_catalog: the Python file with the catalog.
    """
    address = _address(name, paths_catalog)
    if address != name:
        logger.info("%s is %s", name, address)
    return cached_download(address, logger) if re.match(r"(https?|file)://", address) else address


def require_weights(name: str, paths_catalog: str) -> None:
    """Finds out at once that weights are missing; nothing is downloaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the catalog has no such name.
    """
    address = _address(name, paths_catalog)
    if address and "://" not in address and not os.path.isfile(address):
        raise FileNotFoundError(f"{address} {'is a folder' if os.path.isdir(address) else 'does not exist'}, expected a file of weights")


def _address(name: str, paths_catalog: str) -> str:
    if name.startswith("catalog://"):
        return import_file("maskrcnn_bench.paths_catalog", paths_catalog).ModelCatalog.get(name.removeprefix("catalog://"))
    return foreign_address(name)


def cache_folder() -> Path:
    """Where downloaded weights are kept: MODEL_DIR, else a folder in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MODEL_DIR") or Path(cache, "maskrcnn_bench", "models")).expanduser()


def cached_download(address: str, logger: logging.Logger) -> str:
    """The local copy of a file on the net; downloaded once, by one process a machine.

    A SHA-256 that the name tells is checked. In any case it is written down at the first use and compared at every later one.

    Raises:
        OSError: when it cannot be downloaded and is not there.
        ValueError: when the copy is another file than the name says, or changed since its first use.
    """
    path = next((place for place in _places(address) if place.is_file()), None)
    if path is None:
        path = next(_places(address))
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            logger.info("downloading %s to %s", address, path)
            _download(address, path)
    synchronize(f"the download of {address}")
    _check_digest(path, address)
    return str(path)


def _places(address: str) -> Iterator[Path]:
    """Where the file of an address may be; a download goes to the first."""
    parts = urlparse(address)
    name = unquote(parts.path.rstrip("/").rpartition("/")[2]) or "weights"
    # The same file name occurs at many addresses.
    yield cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:8] / name
    plain = parts.path.replace("/", "_") if name in _COMMON_NAMES else name
    yield cache_folder() / plain
    torch_home = os.environ.get("TORCH_HOME")
    yield Path(os.environ.get("TORCH_MODEL_ZOO") or Path(torch_home or "~/.torch", "models")).expanduser() / plain
    yield Path(torch_home or "~/.cache/torch", "hub", "checkpoints").expanduser() / plain


def _download(address: str, path: Path) -> None:
    def copy(file: Any) -> None:
        with urllib.request.urlopen(address, timeout=60) as answer:
            expected = int(answer.headers.get("Content-Length") or -1)
            while block := answer.read(_CHUNK):
                if file.tell() == 0 and (page := _page(block)):
                    raise OSError(f"the answer is {page}, not weights")
                file.write(block)
        if expected not in (-1, file.tell()):
            raise OSError(f"only {file.tell()} of {expected} bytes came")
        if not file.tell():
            raise OSError("the answer is empty")
        file.flush()
        _check_name(address, file.name)

    try:
        write_atomically(path, copy, durable=True)
    except (urllib.error.URLError, OSError) as error:
        raise OSError(f"cannot download {address} ({error}). Without a network, put the file there yourself: {path}") from None


def _page(block: bytes) -> str:
    """What a text that came instead of weights is, in words; empty for anything else."""
    start = block[:4096].lstrip()
    if not start.startswith((b"<", b"{")):
        return ""
    text = start.decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
    words = " ".join(html.unescape(title[1] if title else text).split())[:60]
    return f"{'a web page' if start.startswith(b'<') else 'a text'} ({words!r})"


def _check_name(address: str, path: str | os.PathLike) -> None:
    """Raises OSError where the name of a file begins another hash than its content has."""
    for kind, pattern in _HASHES_IN_NAMES:
        found = pattern.search(urlparse(address).path)
        begins = hash_of(path, kind)[: len(found[1])] if found else ""
        if found and begins != found[1]:
            raise OSError(f"its {kind.upper()} begins with {begins}, but its name says {found[1]}: another file, or damaged on the way")


def _check_digest(path: Path, address: str) -> None:
    digest = hash_of(path)
    try:
        _check_name(address, path)
    except OSError as error:
        raise ValueError(f"{path}: {error}; delete it to download it again") from None
    place = next(_places(address))
    note = place.with_name(place.name + ".sha256")
    if not note.is_file():
        _write_note(note, f"{digest}  {path.name}\n")
    elif note.read_text().split()[:1] != [digest]:
        was = note.read_text()[:12]
        raise ValueError(f"{path} changed since its first use (SHA-256 {digest[:12]}..., not {was}...); delete both to download it again")


def _write_note(note: Path, text: str) -> None:
    try:
        write_atomically(note, lambda file: file.write(text.encode()), durable=True)
    except PermissionError:
        logging.getLogger(__name__).warning("cannot write %s, so a later change of the weights will not be noticed", note)


def hash_of(path: str | os.PathLike, kind: str = "sha256") -> str:
    """The hash of a file, in hexadecimal digits."""
    digest = hashlib.new(kind)
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()
