"""Compare the sizes in a zip archive's directory with the file, before anything is decompressed.

Torch files (and .npz) are zip archives. `torch.save` stores its tensors uncompressed, so such a
file has the size of its tensors. `torch.load` also decompresses members, though, of which 3 MB can
become 3 GB, and it accepts several members that share the same bytes.
"""

from __future__ import annotations

import os
import zipfile

from panoptic_ext.errors import CheckpointError, quoted
from panoptic_ext.regular_files import readable_size

__all__ = ["check_archive_size"]

# Compression makes weights a tenth smaller. Even optimizer states that are half zeros become little
# smaller than half.
_MAX_INFLATION = 8
# Bytes: small archives, and pickles full of names, may compress better than that.
_ALWAYS_ACCEPTED = 64 << 20


def check_archive_size(path: str) -> None:
    """Refuse a zip archive whose members are far larger, unpacked, than the file.

    Args:
        path: a regular file; one that is no zip archive passes.

    Raises:
        CheckpointError: the members are far larger, or the archive's directory is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged: the directory of its archive cannot be read ({error});"
            " fetch or copy it again"
        ) from error
    size, unpacked = os.path.getsize(path), sum(member.file_size for member in members)
    if unpacked <= max(_ALWAYS_ACCEPTED, _MAX_INFLATION * size):
        return
    largest = max(members, key=lambda member: member.file_size)
    raise CheckpointError(
        f"checkpoint {path} has {readable_size(size)}, but its archive says that it unpacks to"
        f" {readable_size(unpacked)} (its largest member, {quoted(largest.filename)}, from"
        f" {readable_size(largest.compress_size)} to {readable_size(largest.file_size)}). Expected"
        " tensors stored as they are, as torch.save does: do not use this file, or save it again"
        " with torch.save where it can be trusted"
    )
