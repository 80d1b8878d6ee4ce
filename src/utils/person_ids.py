"""Hashes of participant ids: an id is personal data, and models are shared."""

import hashlib
from collections.abc import Collection

import torch
from torch import Tensor


def hash_ids(ids: Collection[str]) -> Tensor:
    """Return the sorted int64 hashes ``[n]`` of distinct ids: the first 8 bytes of SHA-256.

    They tell whether a known id is among them. They do not hide ids from someone who can list the
    candidates, such as all numbers of seven digits: where that matters, do not share them.
    """
    return torch.tensor(sorted(_hash(name) for name in set(ids)), dtype=torch.int64)


def known_ids(ids: Collection[str], hashes: Tensor) -> set[str]:
    """Return those of ``ids`` whose hash is among ``hashes``."""
    known = set(hashes.tolist())
    return {name for name in ids if _hash(name) in known}


def _hash(name: str) -> int:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
