"""The published order of ROIs is recognised by the labels of the atlases' own files (method 1)."""

import pytest

from src.datasets.prepare.population import make_atlas
from src.datasets.published_rois import only_numbered, out_of_place, published_order

# Tian's scale III in the order of its label file.
TIAN = [
    *("HIP-head-m", "HIP-head-l", "HIP-body", "HIP-tail", "THA-VPm", "THA-VPl", "THA-VAi"),
    *("THA-VAs", "THA-DAm", "THA-DAl", "PUT-VA", "PUT-DA", "PUT-VP", "PUT-DP", "CAU-VA", "CAU-DA"),
    *("CAU-body", "CAU-tail", "lAMY", "mAMY", "THA-DP", "NAc-shell", "NAc-core", "pGP", "aGP"),
]
SUBCORTEX = [f"{name}-{side}" for side in ("rh", "lh") for name in TIAN]
# How many ROIs of Schaefer's 400 are in each of the 17 networks, left and right.
NETWORKS = {
    **{"VisCent_ExStr": (12, 12), "VisPeri_ExStrSup": (12, 11), "SomMotA": (19, 20)},
    **{"SomMotB_S2": (16, 15), "DorsAttnA_SPL": (13, 14), "DorsAttnB_PostC": (13, 12)},
    **{"SalVentAttnA_Ins": (15, 19), "SalVentAttnB_IPL": (8, 9), "LimbicB_OFC": (5, 6)},
    **{"LimbicA_TempPole": (7, 6), "ContA_IPS": (13, 11), "ContB_IPL": (10, 15)},
    **{"ContC_pCun": (5, 7), "DefaultA_PFCm": (18, 16), "DefaultB_PFCv": (21, 11)},
    **{"DefaultC_PHC": (7, 6), "TempPar": (6, 10)},
}
CORTEX = [
    f"17Networks_{side}_{name}_{i + 1}"
    for s, side in enumerate(("LH", "RH"))
    for name, counts in NETWORKS.items()
    for i in range(counts[s])
]


def test_published_order_is_subcortex_first():
    labels = ["17Networks_LH_A_1", "17Networks_RH_A_1", "HIP-rh", "AMY-lh"]
    assert published_order(labels) == [2, 3, 0, 1]
    assert published_order(["PCcor", "CER"]) == [0, 1]


@pytest.mark.parametrize(
    "labels",
    [
        SUBCORTEX + CORTEX,
        SUBCORTEX + [f"lh_{label}" for label in CORTEX],
        SUBCORTEX + [label.removeprefix("17Networks_") for label in CORTEX],
        [label.replace("-", "_") for label in SUBCORTEX]
        + [f"X{label.replace('_', '.')}" for label in CORTEX],
        [label.replace("VP", "MP").replace("THA-DP", "THA-LP") for label in SUBCORTEX] + CORTEX,
        SUBCORTEX
        + [label.replace("LimbicA", "Limbic").replace("LimbicB", "Limbic") for label in CORTEX],
        list(make_atlas(450).labels),
    ],
    ids=["files", "prefix", "short", "R", "old names of the thalamus", "one limbic", "synthetic"],
)
def test_usual_spellings_are_in_place(labels):
    assert len(labels) == 450
    assert out_of_place(labels) is None
    assert not only_numbered(labels)


def swapped(i: int, j: int) -> list[str]:
    labels = SUBCORTEX + CORTEX
    labels[i], labels[j] = labels[j], labels[i]
    return labels


VISUAL = "17Networks_LH_VisCent_ExStr"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (CORTEX + SUBCORTEX, f"ROI 1 is '{VISUAL}_1', where a subcortical ROI (Tian scale III)"),
        (
            SUBCORTEX[25:] + SUBCORTEX[:25] + CORTEX,
            "ROI 1 is 'HIP-head-m-lh', where a subcortical ROI (Tian scale III) of the right hemi",
        ),
        (swapped(1, 3), "ROI 2 is 'HIP-tail-rh', where hip-head-l of the right hemisphere"),
        (
            SUBCORTEX + CORTEX[200:] + CORTEX[:200],
            "ROI 51 is '17Networks_RH_VisCent_ExStr_1', where one of Schaefer's 17-network atlas "
            "of the left",
        ),
        (
            SUBCORTEX + sorted(CORTEX),
            "ROI 51 is '17Networks_LH_ContA_IPS_1', where network VisCent is",
        ),
        (
            swapped(61, 62),
            f"ROI 63 is '{VISUAL}_12', where network VisPeri or SomMotA is",
        ),
        (swapped(55, 57), f"ROI 56 is '{VISUAL}_8', where number 6 of that name"),
        (
            SUBCORTEX + [label.replace(VISUAL, "7Networks_LH_Vis") for label in CORTEX],
            "ROI 51 is '7Networks_LH_Vis_1', where one of Schaefer's 17-network atlas",
        ),
        (
            SUBCORTEX + [label.replace(VISUAL, "LH_Vis") for label in CORTEX],
            "ROI 51 is 'LH_Vis_1', where one of Schaefer's 17-network atlas",
        ),
        ([f"Region_{chr(97 + i % 26)}{i}" for i in range(450)], "ROI 1 is 'Region_a0', where"),
    ],
)
def test_the_first_roi_out_of_place_is_named(labels, said):
    assert out_of_place(labels).startswith(said)


def test_labels_that_are_numbers_tell_nothing():
    for pattern in ("ROI-{:03d}", "roi{:04d}", "{}", "parcel {} (cortex)"):
        assert only_numbered([pattern.format(i) for i in range(450)])
    assert not only_numbered(["ROI-1-rh", "ROI-1-lh"])
