"""Download one large file: with progress, going on where it stopped, and checked at the end."""

import http.client
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import IO, Any

from promptprism.errors import PromptPrismError
from promptprism.files import sha256_of

#: Takes bytes done and bytes in all.
Step = Callable[[int, int], None]

_BLOCK = 1 << 20
_PATIENCE = 60.0


class UnreachableError(PromptPrismError):
    """A file cannot be had from here."""


class _Stated(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the digest that the hub states beside one."""

    def __init__(self) -> None:
        self.sha256 = ""

    def note(self, headers: Message) -> None:
        found = re.fullmatch('(?:W/)?"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag", ""))
        self.sha256 = found[1] if found else self.sha256

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self.note(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, target: Path, sha256: str = "", step: Step = lambda *_: None) -> bool:
    """Download a file; what an earlier call left of it is not fetched again.

    Args:
        url: where it is.
        target: where it goes, once it is whole and right; until then its name ends in ``.partial``.
        sha256: of its bytes; "" takes the one that the hub states.
        step: called with bytes done and bytes in all.

    Returns:
        Whether there was a digest to compare the file with.

    Raises:
        UnreachableError: no network, or the file is not there.
        PromptPrismError: the file is not the one it should be, or cannot be written.
    """
    partial = target.with_name(f"{target.name}.partial")
    stated = _Stated()
    whole = False
    while not whole:
        before, reason = _size(partial), "the connection ended"
        try:
            whole = _go_on(url, partial, stated, step)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = str(getattr(error, "reason", "") or error)
        # A long download may be cut off many times, as long as it comes forward.
        if not whole and _size(partial) <= before:
            kept = f". The {before:,} bytes that have come are kept for another try" if before else ""
            raise UnreachableError(
                f"cannot fetch {url} ({reason}): there is no network, or no such file any more{kept}"
            )
    wanted = sha256 or stated.sha256
    if wanted and (found := sha256_of(partial)) != wanted:
        partial.unlink()
        raise PromptPrismError(
            f"what {url} gave is not the file it should be: its SHA-256 is {found}, not {wanted}. It was "
            "removed: try again, or fetch it by hand"
        )
    partial.replace(target)
    return bool(wanted)


def _go_on(url: str, partial: Path, stated: _Stated, step: Step) -> bool:
    """Fetch what is missing; say whether all is there."""
    done = _size(partial)
    request = urllib.request.Request(url, headers={"User-Agent": "promptprism"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = urllib.request.build_opener(stated).open(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and done:
            return True  # nothing is missing; the digest tells
        raise
    with response:
        stated.note(response.headers)
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0  # the server starts over
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else 0
        _check_space(partial, total - done)
        with _opened(partial, "ab" if done else "wb") as file:
            while block := response.read(_BLOCK):
                _write(file, block, partial)
                done += len(block)
                step(done, total)
    return done >= total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_space(path: Path, needed: int) -> None:
    if (free := shutil.disk_usage(path.parent).free) < needed:
        raise PromptPrismError(
            f"'{path.parent}' has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are still to come: "
            "make room, or choose another root"
        )


def _opened(path: Path, mode: str) -> IO[bytes]:
    try:
        return path.open(mode)
    except OSError as error:
        raise PromptPrismError(f"cannot write '{path}' ({error.strerror}): check its permissions") from error


def _write(file: IO[bytes], block: bytes, path: Path) -> None:
    try:
        file.write(block)
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{path}' ({error.strerror}): make room; the same command goes on from there"
        ) from error
