"""Files of public weights, fetched into a cache and checked.

    locate("best.ckpt")                         a file of yours, as it is
    locate("deeplabv3-resnet50-coco-torchvision")   a row of the catalogue
    locate("hf://owner/name@revision/file")     a repository of the Hugging Face Hub, or one file of it
    locate("https://example.org/weights.pth")   any other file

A file in the cache is whole: it is written beside its place, synced, compared with its checksum and renamed. Processes
that want the same file wait for the one that fetches it. What cannot be fetched can be put there by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import sys
import threading
import urllib.request
from collections.abc import Iterator
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout  # a requirement of torch and of huggingface_hub

from zoo.checkpoint import sync_folder, writing
from zoo.errors import ZooError
from zoo.weights.catalogue import CATALOGUE, Weights

ANSWER = 8.0  # seconds for names, connections, proxies and redirects together, until a server answers
STALL = 30.0  # seconds without a byte
CHUNK = 1 << 20
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".bin", ".tar", ".pkl")
HUB_FILES = ("config.json", "model.safetensors")


def cache_dir() -> Path:
    """Where fetched files are: `$ZOO_CACHE`, else `$XDG_CACHE_HOME/segmentation-zoo`, else in `~/.cache`."""
    if os.environ.get("ZOO_CACHE"):
        return Path(os.environ["ZOO_CACHE"]).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "segmentation-zoo"


def is_path(weights: str) -> bool:
    """Whether a string names a file or folder, there or not, rather than something to fetch."""
    if Path(weights).expanduser().exists():
        return True
    if "://" in weights or weights in CATALOGUE:
        return False
    return "/" in weights or os.sep in weights or weights.endswith(SUFFIXES)


def locate(weights: str | Path | Weights) -> Path:
    """The file or folder that `weights` names, fetched into the cache if it is not there.

    Args:
        weights: a path, which comes before all else; "hf://owner/name", with "@revision" and "/file" if wanted; an
            address; or the name of a row of the catalogue.

    Raises:
        ZooError: nothing of that name; a file that cannot be fetched (which says what to put where), is not the
            published one, or for which there is no room.
    """
    if isinstance(weights, Path):
        return weights
    name = str(weights)
    if is_path(name):
        return Path(name).expanduser()
    if name.startswith("hf://"):
        return _locate_on_hub(name)
    if name.startswith(("http://", "https://")):
        return fetch(name, cache_dir() / "urls" / _digest(name)[:8] / _file_name(name))
    if name not in CATALOGUE:
        near = get_close_matches(name, CATALOGUE, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "zoo.list_weights() has all names"
        raise ZooError(f"{name!r} is neither a file nor the name of public weights: {hint}")
    row = CATALOGUE[name]
    if not row.commercial:
        print(f"{name}: {row.licence}", file=sys.stderr)
    if row.address.startswith("hf://"):
        return _locate_on_hub(row.address)
    target = cache_dir() / row.publisher / row.file
    if row.manual and not target.is_file():
        raise ZooError(
            f"{name} can only be downloaded by hand: get {PurePosixPath(row.file).name} from {row.address} "
            f"and put it at {target}"
        )
    return fetch(row.address, target, row.checksum)


def fetch(address: str, target: Path, checksum: str | None = None) -> Path:
    """`target`, downloaded from `address` unless it is there.

    Args:
        checksum: "sha256:" or "md5:" and the first digits at least; also of a file that is there already.

    Raises:
        ZooError: as `locate`.
    """
    if not target.is_file():
        with _alone(target):
            if not target.is_file():  # another process may have fetched it meanwhile
                _download(address, target, checksum)
                return target
    if checksum:
        kind, _, wanted = checksum.partition(":")
        with target.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if not found.startswith(wanted):
            raise ZooError(
                f"{target} is damaged or another file: its {kind} is {found[: len(wanted)]}, published is {wanted}; "
                f"delete it, and it is fetched again"
            )
    return target


def _download(address: str, target: Path, checksum: str | None) -> None:
    # One name per target, not a random one: what a killed process left behind is overwritten by the next download.
    temporary = target.with_name(f".{target.name}.part")
    kind, _, wanted = (checksum or "sha256:").partition(":")
    digest = hashlib.new(kind)
    with writing(target):
        try:
            with temporary.open("wb") as file:
                for chunk in _body(address, target):
                    file.write(chunk)
                    digest.update(chunk)
                file.flush()
                os.fsync(file.fileno())
            if not digest.hexdigest().startswith(wanted):
                found = digest.hexdigest()[: len(wanted)]
                raise _by_hand(address, target, f"what came is another file: its {kind} is {found}, not {wanted}")
            os.replace(temporary, target)
            sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _body(address: str, target: Path) -> Iterator[bytes]:
    """The bytes at an address, all of them or a ZooError; a line on stderr, on a terminal with the progress."""
    done = 0
    try:
        with _answer(address) as response:
            size = int(response.headers.get("Content-Length") or 0)
            if response.headers.get_content_type() == "text/html":
                raise _by_hand(address, target, "the server sent a page, not the file")
            line = f"fetching {address}" + (f" ({size / 1e6:.1f} MB)" if size else "")
            print(f"{line} -> {target}", file=sys.stderr, flush=True)
            while chunk := response.read(CHUNK):
                done += len(chunk)
                if size and sys.stderr.isatty():
                    print(f"\r{done / size:4.0%}", end="\n" if done == size else "", file=sys.stderr, flush=True)
                yield chunk
    except (OSError, HTTPException, UnicodeError) as error:
        raise _by_hand(address, target, _reason(error)) from error
    if size and done != size:
        raise _by_hand(address, target, f"the connection ended after {done} of {size} bytes")


def _answer(address: str, method: str = "GET") -> Any:
    """The response to a request, or an OSError within ANSWER seconds.

    A thread waits for it, since no timeout of a socket covers the look-up of a name, and every address that a host
    has begins the timeout of its own.
    """
    request = urllib.request.Request(address, method=method, headers={"User-Agent": "segmentation-zoo"})
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=STALL))
        except Exception as error:  # it is raised where it was asked for
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER:.0f} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words on one line."""
    if isinstance(error, HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, URLError) and isinstance(error.reason, BaseException):
        return _reason(error.reason)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().partition("\n")[0] or type(error).__name__


def _by_hand(address: str, target: Path, reason: str) -> ZooError:
    return ZooError(f"{address} could not be fetched ({reason}): download it elsewhere and put it at {target}")


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keeps other processes of this cache from fetching the same file; the system frees the lock of one that dies."""
    lock = FileLock(cache_dir() / ".locks" / f"{_digest(str(target))[:16]}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that fetches {target}", file=sys.stderr, flush=True)
        lock.acquire()
    except OSError as error:
        raise ZooError(
            f"{target} could not be written ({_reason(error)}): let ZOO_CACHE name a folder that can be"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _file_name(address: str) -> str:
    return PurePosixPath(unquote(urlsplit(address).path)).name or "weights"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ---- the Hugging Face Hub


def _locate_on_hub(address: str) -> Path:
    """A repository's folder with config.json and model.safetensors, or the one file that `address` names.

    What is in the cache is used without asking the Hub for news: "@revision" names another state of the repository.
    """
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?", address)
    if not found:
        raise ZooError(
            f"cannot read {address!r}: write hf://owner/name, hf://owner/name@revision or .../file.safetensors"
        )
    repository, revision, file = found.groups()
    files = (file,) if file else HUB_FILES
    by_hand = cache_dir() / "hub" / f"{repository}{f'@{revision}' if revision else ''}"
    if all((by_hand / name).is_file() for name in files):
        paths = [by_hand / name for name in files]
    else:
        paths = _fetch_from_hub(repository, revision, files, by_hand)
    return paths[0] if file else paths[0].parent


def _fetch_from_hub(repository: str, revision: str | None, files: tuple[str, ...], by_hand: Path) -> list[Path]:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    options: dict[str, Any] = {"repo_id": repository, "revision": revision}
    try:
        try:
            paths = [hf_hub_download(filename=name, local_files_only=True, **options) for name in files]
        except LocalEntryNotFoundError:
            if constants.HF_HUB_OFFLINE:
                raise OSError("HF_HUB_OFFLINE is set") from None
            _check_hub(constants.ENDPOINT)
            paths = [hf_hub_download(filename=name, **options) for name in files]
    except Exception as error:  # of the Hub's library, of its HTTP library, of the system
        page = f"{constants.ENDPOINT}/{repository}/tree/{revision or 'main'}"
        where = f"put it at {by_hand / files[0]}" if len(files) == 1 else f"put them into {by_hand}"
        raise ZooError(
            f"hf://{repository} could not be fetched ({_hub_reason(error)}): download {' and '.join(files)} from "
            f"{page} elsewhere and {where}"
        ) from error
    for path in paths:
        _check_blob(Path(path))
    return [Path(path) for path in paths]


def _hub_reason(error: BaseException) -> str:
    """As `_reason`; the Hub's library says on its first line which number the server answered, on the next one why."""
    if type(error).__name__ == "LocalEntryNotFoundError" and error.__cause__ is not None:
        return _hub_reason(error.__cause__)  # why it looked for a local one
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1].rstrip(".") if len(lines) > 1 and "Client Error" in lines[0] else _reason(error)


def _check_hub(endpoint: str) -> None:
    """An OSError within ANSWER seconds where the Hub cannot be reached; its library tries for half a minute."""
    with contextlib.suppress(HTTPError):  # an answer is an answer
        _answer(endpoint, "HEAD").close()


def _check_blob(path: Path) -> None:
    """Compare a large file with the SHA-256 that is its name in the Hub's cache.

    Raises:
        ZooError: they differ.
    """
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        raise ZooError(f"{blob} is damaged (its sha256 is {found[:8]}...): delete it, and it is fetched again")
