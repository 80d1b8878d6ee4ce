"""The published order of ROIs, and whether labels agree with it (method 1).

50 subcortical ROIs of Tian's scale III come first, right hemisphere before left, then the 400 of
Schaefer's 17-network atlas, left hemisphere before right. The release's files do not hold the
labels of the ROIs they were trained on, so this is all that a folder's labels can be checked by.
"""

import re
from collections.abc import Sequence

PUBLISHED_ATLAS = "Tian-S3+Schaefer400-17n"
N_SUBCORTICAL, N_CORTICAL = 50, 400
PUBLISHED_ORDER = (
    "50 subcortical ROIs (Tian scale III, right hemisphere first), then the 400 of Schaefer's "
    "17-network atlas (left hemisphere first), each in the order of its own label file"
)

# Tian's scale III (3 T) in its order; two names of the thalamus changed between its versions.
_TIAN = (
    *("hip-head-m", "hip-head-l", "hip-body", "hip-tail"),
    *("tha-vpm", "tha-vpl", "tha-vai", "tha-vas", "tha-dam", "tha-dal"),
    *("put-va", "put-da", "put-vp", "put-dp"),
    *("cau-va", "cau-da", "cau-body", "cau-tail"),
    *("lamy", "mamy", "tha-dp", "nac-shell", "nac-core", "pgp", "agp"),
)
_TIAN_RENAMED = {"tha-mpm": "tha-vpm", "tha-mpl": "tha-vpl", "tha-lp": "tha-dp"}
_STRUCTURES = re.compile(r"[aplm]?(hip|tha|put|cau|amy|nac|gp)")
_SIDES = {"rh": "right", "right": "right", "lh": "left", "left": "left"}
_LETTERS = {"r": "right", "l": "left"}  # only as the last part: "HIP-head-l-rh" is lateral

# Networks in Schaefer's order. Its files split the limbic one in two, some atlases' copies do not.
_NETWORKS = (
    *("VisCent", "VisPeri", "SomMotA", "SomMotB", "DorsAttnA", "DorsAttnB"),
    *("SalVentAttnA", "SalVentAttnB", "Limbic", "ContA", "ContB", "ContC"),
    *("DefaultA", "DefaultB", "DefaultC", "TempPar"),
)
_RANK = {name.lower(): rank for rank, name in enumerate(_NETWORKS)}
_RANK |= {"limbica": _RANK["limbic"], "limbicb": _RANK["limbic"]}
_CORTICAL = re.compile(r"(?:(\d+)networks?[^a-z0-9]+)?([lr])h[^a-z0-9]+([a-z]+)", re.IGNORECASE)


def published_order(labels: Sequence[str]) -> list[int]:
    """Return the order with subcortical ROIs first; the rest stays.

    Schaefer's cortical labels are recognised by "7Networks_" or "17Networks_"; labels of another
    atlas are left in place.
    """
    cortical = ["Networks_" in label for label in labels]
    return sorted(range(len(labels)), key=lambda i: cortical[i])  # sorted() is stable


def only_numbered(labels: Sequence[str]) -> bool:
    """Whether the labels tell nothing but a number: ``ROI-001``, ``roi12``, ``7``."""
    return len({re.sub(r"\d+", "", label) for label in labels}) == 1


def out_of_place(labels: Sequence[str]) -> str | None:
    """Name the first of 450 labels that is not in the published order, and what stands there.

    Tian's names are compared with their places, Schaefer's as far as hemispheres, networks and
    running numbers tell. A subcortical label that Tian's list does not hold is accepted where it
    names one of its structures and the hemisphere. ``None`` if nothing is out of place.
    """
    numbers: dict[str, int] = {}
    rank = -1
    for place, label in enumerate(labels):
        if place < N_SUBCORTICAL:
            expected = _expected_subcortical(label, place)
        else:
            if place == N_SUBCORTICAL + N_CORTICAL // 2:
                rank = -1  # the right hemisphere begins
            expected, rank = _expected_cortical(label, place - N_SUBCORTICAL, rank, numbers)
        if expected:
            return f"ROI {place + 1} is '{label}', where {expected} is expected"
    return None


def _expected_subcortical(label: str, place: int) -> str | None:
    """What is expected at ``place`` (0 to 49), unless it is ``label``."""
    side = "right" if place < N_SUBCORTICAL // 2 else "left"
    parts = [part for part in re.split(r"[^a-z0-9]+", label.lower()) if part]
    sides = [part for part in parts if part in _SIDES] or [p for p in parts[-1:] if p in _LETTERS]
    if not any(_STRUCTURES.fullmatch(part) for part in parts) or (
        [(_SIDES | _LETTERS)[part] for part in sides] != [side]
    ):
        return f"a subcortical ROI (Tian scale III) of the {side} hemisphere"
    parts.remove(sides[0])
    name = _TIAN_RENAMED.get("-".join(parts), "-".join(parts))
    there = _TIAN[place % len(_TIAN)]
    return f"{there} of the {side} hemisphere" if name in _TIAN and name != there else None


def _expected_cortical(
    label: str, place: int, rank: int, numbers: dict[str, int]
) -> tuple[str | None, int]:
    """What is expected at ``place`` (0 to 399), unless it is ``label``; the rank of its network.

    ``rank`` is that of the ROI before, ``numbers`` the last running number of each name so far.
    """
    side = "left" if place < N_CORTICAL // 2 else "right"
    found = _CORTICAL.search(label)
    network = "" if found is None or found[1] not in (None, "17") else found[3].lower()
    if network not in _RANK or not side.startswith(found[2].lower()):
        return f"one of Schaefer's 17-network atlas of the {side} hemisphere", rank
    if _RANK[network] not in (rank, rank + 1):
        return f"network {' or '.join(_NETWORKS[max(rank, 0) : rank + 2])}", rank
    stem, number = re.fullmatch(r"(.*?)(\d*)", label, re.DOTALL).groups()
    if number and int(number) != numbers.get(stem, 0) + 1:
        return f"number {numbers.get(stem, 0) + 1} of that name", rank
    numbers[stem] = int(number or 0)
    return None, _RANK[network]
