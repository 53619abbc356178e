"""Files that hold the same bytes under several names, whose structures would count several times."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from harness.reference.errors import InputError

COMPARED_BYTES = 1 << 19  # at either end, before all of it


def refuse_copies(paths: Iterable[Path]) -> None:
    """Raise InputError if two different files hold the same bytes.

    Files are read as far as they agree with another one of the same size: most of them not at all.
    """
    alike: dict[tuple[int, str], list[Path]] = defaultdict(list)
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        if path.is_file():
            sizes[path.stat().st_size].append(path)
    for size, some in sizes.items():
        for path in some if len(some) > 1 and size else ():
            alike[size, _digest_ends(path, size)].append(path)
    for some in alike.values():
        for k, path in enumerate(some):
            for other in some[:k]:
                if filecmp.cmp(other, path, shallow=False):
                    raise InputError(
                        f"{path}: holds the same bytes as {other}; name only one of them, or take one out of the folder"
                    )


def _digest_ends(path: Path, size: int) -> str:
    with path.open("rb") as file:
        digest = sha256(file.read(COMPARED_BYTES))
        file.seek(max(0, size - COMPARED_BYTES))
        digest.update(file.read(COMPARED_BYTES))
    return digest.hexdigest()
