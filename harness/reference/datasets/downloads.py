"""Addresses of official files, and what their publishers say of the bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """A file and its address; md5, size: what its publisher says of it, or None. size: bytes."""

    name: str
    url: str
    md5: str | None = None
    size: int | None = None


_OPEN_CATALYST = "https://dl.fbaipublicfiles.com/opencatalystproject/data/"
_QM7X = "https://zenodo.org/records/4288677/files/"
_QM7X_MD5 = (
    "b50c6a5d0a4493c274368cf22285503e", "4418a813daf5e0d44aa5a26544249ee6", "f7b5aac39a745f11436047c12d1eb24e",
    "26819601705ef8c14080fa7fc69decd4", "85ac444596b87812aaa9e48d203d0b70", "787fc4a9036af0e67c034a30ad854c07",
    "5ecce00a188410d06b747cb683d8d347", "c893ae88b8f5c32541c3f024fc1daa45",
)  # fmt: skip

# Addresses that need no account; of all others `Source.fetch` says what to do.
DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "ani1x": (
        Download(
            "ani1x-release.h5",
            "https://springernature.figshare.com/ndownloader/files/18112775",
            md5="98090dd6679106da861f52bed825ffb7",
            size=5_590_846_027,
        ),
    ),
    "oc2020": tuple(
        Download(f"s2ef_{name}.tar", f"{_OPEN_CATALYST}s2ef_{name}.tar")
        for name in ("train_200K", "train_2M", "train_20M", "train_all")
    ),
    "oc2022": (
        Download(
            "s2ef_total_train_val_test_lmdbs.tar.gz",
            "https://dl.fbaipublicfiles.com/opencatalystproject/data/oc22/s2ef_total_train_val_test_lmdbs.tar.gz",
            md5="ebea523c6f8d61248a37b4dd660b11e6",
        ),
    ),
    "qm7x": tuple(Download(f"{k}000.xz", f"{_QM7X}{k}000.xz", md5) for k, md5 in enumerate(_QM7X_MD5, start=1)),
}
