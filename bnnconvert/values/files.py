"""Write files so that a crash, a full disk or a kill leaves either the old file or the new one, never half of one."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bnnconvert.errors import UsageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NEARLY_FULL = 1 << 16


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Path of an empty temporary file beside `path`; on leaving, it is flushed to disk and takes the place of `path`.

    Whatever goes wrong inside, the temporary file is removed and `path` is as it was.

    Raises: UsageError where the folder is missing, may not be written to or has no space left, or where `path` is a
    device.
    """
    target = Path(path)
    # By functions that take what they may not look at for missing; opening the temporary file says why.
    if os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target):
        raise UsageError(f"{target}: is a device or pipe, which a file would replace; choose another name.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    except Exception as error:
        explained = _explain(error, target, temporary)
        if explained is None:
            raise
        raise explained from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the content of `path` at once.

    Raises: UsageError as `atomic_write`.
    """
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Replace the content of `path` at once, in UTF-8 with line feeds.

    Raises: UsageError as `atomic_write`.
    """
    write_bytes(path, text.encode())


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Make the file or folder durable; folders cannot be opened on every system, and then the rename has to do."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: Exception, target: Path, temporary: Path) -> UsageError | None:
    """One sentence for what the user can mend: no space, no folder, no permission; none for every other error."""
    if _is_full(error, target.parent):
        return UsageError(f"{target}: no space left on the disk; free some or choose another folder.")
    if not isinstance(error, OSError) or str(error.filename) != str(temporary):
        return None
    if isinstance(error, FileNotFoundError) and not target.parent.is_dir():
        return UsageError(f"{target}: the folder {target.parent} does not exist; create it first.")
    if isinstance(error, NotADirectoryError):
        return UsageError(f"{target}: {target.parent} is not a folder; choose another path.")
    if isinstance(error, IsADirectoryError):
        return UsageError(f"{target}: is a folder; choose another name for the file.")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return UsageError(f"{target}: may not be written ({error.strerror}); choose a folder that you may write to.")
    return None


def _is_full(error: Exception, folder: Path) -> bool:
    """Whether a write failed for lack of space: torch and safetensors tell it in errors of their own."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    if "No space left" in str(error) or "os error 28" in str(error):
        return True
    if isinstance(error, RuntimeError) and ("inline_container" in str(error) or "PytorchStreamWriter" in str(error)):
        return shutil.disk_usage(folder).free < _NEARLY_FULL
    return False
