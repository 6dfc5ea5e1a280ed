"""Files of public data sets: fetched once, used only if they are the official ones, and read without being unpacked."""

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pooch

from experiment.errors import UserError


def official(path: Path, *, address: str, digest: str) -> Path:
    """The path itself, once the file is there and is the official one; it is downloaded where it is absent.

    Args:
        path: where the file lies, or is put whole and verified, or not at all.
        address: where it is published.
        digest: `sha256:` or `md5:` and the hex digits that its publisher, or a copy of it, gives.

    Returns:
        `path`.

    Raises:
        UserError: it cannot be downloaded, or is another file.
    """
    algorithm, expected = digest.split(":")
    if not path.exists():
        _download(path, address, digest)
    found = pooch.file_hash(str(path), alg=algorithm)
    if found != expected:
        raise UserError(
            f"{path}: {algorithm} is {found} and not the official {expected}; delete it to download it again."
        )
    return path


def _download(path: Path, address: str, digest: str) -> None:
    try:
        pooch.retrieve(address, digest, fname=path.name, path=path.parent, progressbar=True)
    except (OSError, ValueError) as error:
        reason = str(error).split(". ")[0]  # advice that does not apply here may follow
        algorithm, expected = digest.split(":")
        raise UserError(
            f"{path.name} could not be downloaded from {address} ({reason}); put the file with {algorithm} {expected} "
            f"into {path.parent} by other means."
        ) from error


def read_members(archive: Path, names: Sequence[str]) -> list[bytes]:
    """Content of regular files of a tar archive; nothing is unpacked to the disk, so no path in it can do harm.

    Args:
        archive: the tar file, compressed or not.
        names: which files.

    Returns:
        Content of each, in the order of the names.

    Raises:
        UserError: the archive is damaged or lacks one of them.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            while len(found) < len(names) and (member := tar.next()):
                name = member.name.removeprefix("./")
                if name in names and member.isreg():
                    found[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{archive} cannot be read ({error}); delete it to download it again.") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{archive} holds no file {missing[0]}; delete it to download it again.")
    return [found[name] for name in names]
