"""Fetching a checkpoint from the model hub into its cache: `whisperd models pull`.

Owns the download, the room it needs, continuing where it broke off, the check of every byte, and what a hub may say:
nothing of its answers is a path. A digest is hexadecimal, a file's name has no folder in it, or all is refused.
Addresses and tokens are the library's, and so is the cache's layout: contents lie in `blobs`, each under its digest,
names in a snapshot point there, and a ref says which is the newest. The library does not fetch: it would begin a broken
file of gigabytes anew, and takes a hub's word for a path.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from streaming.whisper.locate import cached, wanted

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

PARTIAL = ".whisperd.incomplete"
"""The end of the name of a file that is not all here yet."""

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_LARGEST = 1 << 40
"""Bytes of a file of a model."""

_ATTEMPTS = 5  # in a row, without a byte
_PAUSE = 1.0
_PIECE = 1 << 20

Advance = Callable[[int], object]
"""Called with the bytes that were done since."""


class PullError(Exception):
    """A model cannot be fetched; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model.

    Attributes:
        path: its name, without a folder.
        size: its bytes.
        digest: SHA-256 of a large file, git's own of the others. The cache calls it by that.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What the hub has under a name, of what a checkpoint needs.

    Attributes:
        name: the model's name on the hub.
        commit: the version.
        files: those that a checkpoint needs.
        folder: the model's folder in the cache.
    """

    name: str
    commit: str
    files: tuple[HubFile, ...]
    folder: Path

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.digest


def look_up(name: str) -> Listing:
    """Ask the hub what it has under a name.

    Raises:
        PullError: it has no such model, cannot be reached, or answers something else.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    with _explained(name):
        try:
            found = HfApi().model_info(name, files_metadata=True)
            files = tuple(_file(each) for each in found.siblings or () if wanted(each.rfilename))
            commit = _matching(_COMMIT, found.sha)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, OSError | HFValidationError):
                raise
            raise PullError(_no_listing(name, error)) from None
    paths = [file.path for file in files]
    if "config.json" not in paths or not any(path.endswith((".safetensors", ".index.json")) for path in paths):
        raise PullError(
            f"{name} has no config.json with model.safetensors: it is not a checkpoint that whisperd can read (other "
            "weights can be converted: transformers' from_pretrained, then save_pretrained)"
        )
    return Listing(name, commit, files, folder(name))


def _file(sibling: RepoSibling) -> HubFile:
    """Return a file as the hub lists it.

    Raises:
        ValueError: what the hub says of it cannot be.
    """
    path = _matching(_NAME, sibling.rfilename)
    size: object = sibling.size or 0
    digest: object = sibling.blob_id
    if sibling.lfs is not None:
        size, digest = sibling.lfs.size, sibling.lfs.sha256
    if not isinstance(size, int) or not 0 <= size <= _LARGEST:
        raise ValueError(f"{path} has {_shown(size)} bytes")
    return HubFile(path, size, _matching(_DIGEST, digest))


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError(
            f"{_shown(value)} is not a digest" if pattern is not _NAME else f"{_shown(value)} is not a file name"
        )
    return value


def _shown(value: object) -> str:
    return ascii(value)[:60]


def _no_listing(name: str, error: Exception) -> str:
    from huggingface_hub import constants

    reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return (
        f"{constants.ENDPOINT} answered with an invalid listing of {name} ({reason[:120]}), and nothing was fetched: "
        "is it the right hub (HF_ENDPOINT)?"
    )


def pull(listing: Listing, advance: Advance) -> Path:
    """Fetch all files of a listing, check each, and return the directory of the checkpoint.

    Args:
        listing: what the hub has.
        advance: called with the bytes that were done since the last call. In all they are `listing.size`, which
            includes those that were here already.

    Raises:
        PullError: it cannot be fetched. What came until then is kept, and the next call goes on from there.
    """
    with _explained(listing.name):
        missing = [file for file in listing.files if not _is_here(listing.blob(file), file, advance)]
        _require_room(listing, missing)
        for file in missing:
            _fetch(listing, file, advance)
        _name_contents(listing)
        return cached(listing.name)


def _name_contents(listing: Listing) -> None:
    """Make the snapshot, whose names point at the contents, and the ref, which says that it is the newest."""
    snapshot = listing.folder / "snapshots" / listing.commit
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in listing.files:
        content = Path("..", "..", "blobs", file.digest)
        _replace(snapshot / file.path, partial(Path.symlink_to, target=content))
    refs = listing.folder / "refs"
    refs.mkdir(exist_ok=True)
    _replace(refs / "main", lambda new: new.write_text(listing.commit))


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file anew in one step: another process may read it meanwhile, or do the same."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    make(new)
    os.replace(new, path)


def folder(name: str) -> Path:
    """Return the folder where the cache keeps a model."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def broken_off(name: str) -> int:
    """Return how many bytes are here of files that are not all here yet."""
    return sum(file.stat().st_size for file in (folder(name) / "blobs").glob(f"*{PARTIAL}"))


# --- one file --------------------------------------------------------------------------------------------------------


def _is_here(blob: Path, file: HubFile, advance: Advance) -> bool:
    """Return whether a file is here, unharmed. A harmed one is removed."""
    if not blob.exists():
        return False
    if blob.stat().st_size == file.size and _digest(blob, file) == file.digest:
        advance(file.size)
        return True
    blob.unlink()
    return False


def _require_room(listing: Listing, missing: Sequence[HubFile]) -> None:
    listing.folder.joinpath("blobs").mkdir(parents=True, exist_ok=True)
    needed = sum(file.size for file in missing) - broken_off(listing.name)
    free = shutil.disk_usage(listing.folder).free
    if needed > free:
        raise PullError(_no_room(listing, f"needs {megabytes(needed)} more, but only {megabytes(free)} are free"))


def _fetch(listing: Listing, file: HubFile, advance: Advance) -> None:
    blob = listing.blob(file)
    partial = blob.with_name(blob.name + PARTIAL)
    with open(partial, "ab") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullError(f"another `whisperd models pull` is fetching {listing.name}: let it finish") from None
        _fill(listing, file, out, advance)
        out.flush()
        if _digest(partial, file) != file.digest:
            partial.unlink()
            raise PullError(f"{file.path} of {listing.name} arrived damaged and was deleted: pull it again")
        os.replace(partial, blob)


def _fill(listing: Listing, file: HubFile, out: IO[bytes], advance: Advance) -> None:
    """Fetch until `out` has all bytes: from its end on, over as many connections as it takes."""
    have = out.seek(0, os.SEEK_END)
    if have > file.size:
        have = _empty(out)
    advance(have)
    idle = 0
    while have < file.size:
        failure: Exception | None = None
        try:
            _receive(listing, file, out, have, advance)
        except _network_error() as error:
            if getattr(error, "response", None) is not None:
                raise  # an answer, if not the one we want
            failure = error
        before, have = have, out.seek(0, os.SEEK_END)
        idle = 0 if have > before else idle + 1
        if idle == _ATTEMPTS:
            raise failure or PullError(f"{file.path} of {listing.name} arrived incomplete: pull it again")
        if failure is not None:
            time.sleep(_PAUSE)


def _empty(out: IO[bytes]) -> int:
    out.seek(0)
    out.truncate()
    return 0


def _receive(listing: Listing, file: HubFile, out: IO[bytes], have: int, advance: Advance) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # Not compressed: what we count and ask for are the file's own bytes.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    url = hf_hub_url(listing.name, file.path, revision=listing.commit)
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as answer:
        hf_raise_for_status(answer)
        if have and answer.status_code != 206:
            _empty(out)  # the whole comes, though only the rest was asked for
            advance(-have)
        for piece in answer.iter_bytes():
            out.write(piece)
            advance(len(piece))
            if out.tell() > file.size:
                return  # the check says what to do


def _digest(path: Path, file: HubFile) -> str:
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)  # as git names contents
    with open(path, "rb") as content:
        while piece := content.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _network_error() -> type[Exception]:
    # The library's client for HTTP has changed its name, and may again; its errors are this one's base.
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__mro__[1]
    return base


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what the library and the system raise into PullError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    hub = constants.ENDPOINT
    try:
        yield
    except OfflineModeIsEnabled:
        raise PullError("HF_HUB_OFFLINE is set, which forbids downloads: unset it") from None
    except HFValidationError as error:
        raise PullError(f"{name} is not a name on the model hub: {error}") from None
    except GatedRepoError:
        raise PullError(
            f"{name} is gated: accept its terms at {hub}/{name}, then log in (`hf auth login`) or set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise PullError(f"{hub} has no model {name}: check the name, and HF_TOKEN if the model is private") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "nothing"
        raise PullError(f"{hub} answered {status} when asked for {name}: try again later") from None
    except (_network_error(), LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PullError(
            f"{hub} cannot be reached ({reason[:120]}): check the network; what has arrived so far is kept"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PullError(
                f"{name}: the disk of {constants.HF_HUB_CACHE} is full: make room, then pull again"
            ) from None
        raise PullError(f"{error.filename or constants.HF_HUB_CACHE}: {error.strerror or error}") from None


def _no_room(listing: Listing, why: str) -> str:
    return f"{listing.name} {why} in {listing.folder.parent}: make room, or set HF_HOME to a folder on another disk"


def megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
