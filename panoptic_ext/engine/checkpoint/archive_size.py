"""What the directory of a zip archive claims, looked at before anything is inflated.

Torch files (and .npz) are zip archives. `torch.save` stores its tensors as they are, so that such a
file has the size of its tensors; but the reader also inflates compressed members, of which 3 MB can
become 3 GB, and takes several members that share the same bytes.
"""

from __future__ import annotations

import os
import zipfile

from panoptic_ext.errors import CheckpointError, quoted
from panoptic_ext.regular_files import readable_size

__all__ = ["check_archive_size"]

# Weights that somebody packed again shrink by a tenth; even optimizer states that are half zeros
# not by much more than half.
_MOST_INFLATION = 8
_ALWAYS_FINE = 64 << 20  # bytes: small archives, and pickles full of names, may be packed well


def check_archive_size(path: str) -> None:
    """Refuse a zip archive whose members are far larger, unpacked, than the file.

    Args:
        path: of a regular file; one that is no zip archive is left to its reader.

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
    if unpacked <= max(_ALWAYS_FINE, _MOST_INFLATION * size):
        return
    largest = max(members, key=lambda member: member.file_size)
    raise CheckpointError(
        f"checkpoint {path} has {readable_size(size)}, but its archive says that it unpacks to"
        f" {readable_size(unpacked)} (its largest member, {quoted(largest.filename)}, from"
        f" {readable_size(largest.compress_size)} to {readable_size(largest.file_size)}). Expected"
        " tensors stored as they are, as torch.save does: do not use this file, or save it again"
        " with torch.save where it can be trusted"
    )
