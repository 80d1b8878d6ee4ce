"""Draw the figures of the README: the method, and the gradients that give ROIs their positions.

    python scripts/draw_figures.py                       both, without any data
    python scripts/draw_figures.py --data_dir data/mine  the gradients of a data-set folder

Each figure is a white card with a thin frame, so that it reads alike on light and dark pages.
"""

import argparse
import io
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.datasets.folder import DataFolder  # noqa: E402
from src.datasets.prepare.gradients import diffusion_gradients  # noqa: E402
from src.datasets.prepare.population import FAMILIES, Population, make_atlas  # noqa: E402
from src.datasets.roi_features import load_gradients  # noqa: E402
from src.masks.collator import MaskCollator  # noqa: E402
from src.masks.draw import BLOCK_COLORS, block_grid, rows_by_block  # noqa: E402
from src.masks.spatiotemporal import SpatiotemporalMasks  # noqa: E402
from src.utils.errors import UserError, run_main  # noqa: E402

INK, MUTED, FRAME, PAPER = "#24292f", "#6e7781", "#d0d7de", "#ffffff"
TRAINED, AVERAGED = "#dbe8f6", "#e8e6f3"  # boxes of networks
DPI = 140


def card(width: float, height: float) -> tuple[Figure, Axes]:
    """A transparent figure with a framed white card on it, and axes in inches over the whole."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    box(axes, 0.03, 0.03, width - 0.06, height - 0.06, PAPER, edge=FRAME, radius=0.15)
    return figure, axes


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    color: str,
    edge: str = INK,
    radius: float = 0.08,
) -> None:
    style = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, fc=color, ec=edge, lw=1))


def inset(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes without ticks at a place given in inches."""
    w, h = figure.get_size_inches()
    axes = figure.add_axes((x / w, y / h, width / w, height / h))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=INK, linewidth=0.8)
    return axes


def arrow(axes: Axes, *points: tuple[float, float], color: str = INK, dashed: bool = False) -> None:
    """An arrow along straight segments."""
    *way, last = points
    style = {"color": color, "lw": 1.3, "linestyle": (0, (3, 2)) if dashed else "-"}
    if len(way) > 1:
        axes.plot(*zip(*way, strict=True), solid_joinstyle="round", **style)
    properties = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11, **style}
    axes.annotate("", last, way[-1], arrowprops=properties)


def text(axes: Axes, x: float, y: float, words: str, **options: object) -> None:
    defaults = {"ha": "center", "va": "center", "color": INK, "fontsize": 10, "linespacing": 1.3}
    axes.text(x, y, words, **defaults | options)


def title(axes: Axes, x: float, y: float, words: str, note: str) -> None:
    text(axes, x, y, words, weight="bold", fontsize=13, va="baseline")
    text(axes, x, y - 0.3, note, color=MUTED, va="baseline")


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png")
        # 256 colours look the same and take a third of the bytes
        Image.open(buffer).quantize(256).save(path, optimize=True)


# ------------------------------------------------------------------------------------ the method


def draw_method(path: Path) -> None:
    """From a run to the loss (method 1, 2, 5 and 6), with a mask that the collator drew."""
    n_rois, n_patches, patch_size = 32, 10, 16
    codes = clear_mask(n_rois, n_patches)
    families = len(FAMILIES)
    run = Population.draw(n_rois, "model", seed=0).run(
        np.random.default_rng(0), np.zeros((families, families)), n_patches * patch_size, tr=0.8
    )
    run = (run - run.mean(axis=1, keepdims=True)) / run.std(axis=1, keepdims=True)
    figure, axes = card(13.2, 5.6)
    upper, lower = 3.5, 0.95  # heights of the paths of context and targets

    carpet(inset(figure, 0.6, 1.75, 2.35, 2.75), run, n_patches)
    title(axes, 1.775, 4.98, "fMRI run", r"a token: 1 ROI $\times$ 16 frames")
    text(axes, 0.38, 3.12, "ROIs", rotation=90, color=MUTED)
    text(axes, 2.95, 1.57, "time", color=MUTED, ha="right")
    arrow(axes, (3.03, 3.12), (3.67, 3.12))

    grid = inset(figure, 3.75, 1.75, 2.35, 2.75)
    colors = ListedColormap(list(BLOCK_COLORS.values()))
    grid.imshow(
        codes, cmap=colors, vmin=0, vmax=colors.N - 1, aspect="auto", interpolation="nearest"
    )
    name_blocks(grid, codes)
    title(axes, 4.925, 4.98, "spatiotemporal mask", "ROIs rearranged to show blocks")
    kinds = r"$\alpha$ Cross-ROI   $\beta$ Cross-Time   $\gamma$ Double-Cross"
    text(axes, 4.925, 1.57, kinds, color=MUTED, fontsize=9)

    network(axes, 7.55, upper, "encoder", TRAINED)
    network(axes, 10.05, upper, "predictor", TRAINED)
    network(axes, 7.55, lower, "target\nencoder", AVERAGED)
    arrow(axes, (6.18, upper), (7.47, upper))
    squares(axes, 6.8, upper + 0.22, ["context"] * 3)
    text(axes, 6.8, upper - 0.2, "context", color=MUTED)
    arrow(axes, (9.13, upper), (9.97, upper))
    arrow(axes, (1.775, 1.67), (1.775, lower), (7.47, lower))
    text(axes, 4.925, lower + 0.19, "all tokens", color=MUTED)
    arrow(axes, (8.3, upper - 0.53), (8.3, lower + 0.53), color=MUTED, dashed=True)
    text(axes, 8.42, 2.22, "weights:\nmoving\naverage", color=MUTED, ha="left")

    # positions and mask tokens
    box(axes, 7.3, 4.62, 4.5, 0.66, PAPER)
    text(axes, 9.55, 5.07, "positions, in all three networks:")
    text(axes, 9.55, 4.83, "sin-cos of the time patch, Linear( gradient of the ROI )")
    arrow(axes, (8.3, 4.62), (8.3, upper + 0.53))
    arrow(axes, (10.8, 4.62), (10.8, upper + 0.53))
    targets = ["alpha", "alpha", "beta", "gamma"]
    squares(axes, 10.8, 2.3, targets, filled=False)
    text(axes, 10.8, 2.04, "mask tokens", color=MUTED)
    arrow(axes, (10.8, 2.48), (10.8, upper - 0.53))

    # the loss
    arrow(axes, (11.63, upper), (11.98, upper))
    squares(axes, 12.48, upper, targets)
    text(axes, 12.48, upper + 0.3, "predicted", color=MUTED)
    arrow(axes, (9.13, lower), (11.98, lower))
    for x in (9.52, 9.6):  # a cut through the arrow
        axes.plot([x, x + 0.07], [lower - 0.14, lower + 0.14], color=INK, lw=1.3)
    text(axes, 9.6, lower - 0.32, "no gradient", color=MUTED)
    text(axes, 10.8, lower + 0.2, "LayerNorm, targets only", color=MUTED)
    squares(axes, 12.48, lower, targets)
    text(axes, 12.48, lower - 0.3, "target", color=MUTED)
    box(axes, 11.88, 1.97, 1.2, 0.5, PAPER)
    text(axes, 12.48, 2.22, "smooth L1", weight="bold", fontsize=11)
    arrow(axes, (12.48, upper - 0.18), (12.48, 2.55))
    arrow(axes, (12.48, lower + 0.18), (12.48, 1.89))
    save(figure, path)


def clear_mask(n_rois: int, n_patches: int) -> np.ndarray:
    """Block codes [R, P], rows rearranged, of a mask whose parts are all large enough to see."""
    collator = MaskCollator(SpatiotemporalMasks(n_rois, n_patches))
    for step in range(20_000):
        sizes = collator.sizes(step)
        if (sizes.context_columns, sizes.alpha_columns, sizes.margin_columns) != (6, 3, 2) or min(
            sizes.beta_rows, sizes.gamma_rows
        ) < 4:
            continue
        codes = block_grid(collator.sample(1, step), 0, (n_rois, n_patches))
        codes = codes[rows_by_block(codes)]
        observed = np.flatnonzero((codes == 1).any(axis=0))
        gamma = np.flatnonzero((codes[:, :2] == 4).any(axis=1))
        if np.ptp(observed) + 1 == observed.size and np.ptp(gamma) + 1 == gamma.size:
            return codes
    raise RuntimeError("no mask of 20000 is fit to be shown")


def network(axes: Axes, x: float, y: float, name: str, color: str) -> None:
    box(axes, x, y - 0.45, 1.5, 0.9, color)
    text(axes, x + 0.75, y, name, weight="bold", fontsize=12)


def squares(axes: Axes, x: float, y: float, blocks: list[str], filled: bool = True) -> None:
    """A row of tokens, centred on x, y."""
    size, gap = 0.17, 0.05
    left = x - (len(blocks) * (size + gap) - gap) / 2
    for i, block in enumerate(blocks):
        color = BLOCK_COLORS[block]
        face = color if filled else PAPER
        box(axes, left + i * (size + gap), y - size / 2, size, size, face, edge=color, radius=0.03)


def carpet(axes: Axes, run: np.ndarray, n_patches: int) -> None:
    """A run [R, T] as an image, with lines between patches and a frame around one token."""
    axes.imshow(run, cmap="RdBu_r", vmin=-2.6, vmax=2.6, aspect="auto", interpolation="nearest")
    width = run.shape[1] / n_patches
    for edge in np.arange(1, n_patches) * width - 0.5:
        axes.axvline(edge, color=PAPER, linewidth=1.2)
    axes.add_patch(Rectangle((6 * width - 0.5, 7.5), width, 1, fc="none", ec=INK, lw=1.8, zorder=3))


def name_blocks(axes: Axes, codes: np.ndarray) -> None:
    """Write their names into the blocks of a picture of block codes [R, P]."""
    for edge in np.arange(1, codes.shape[1]) - 0.5:
        axes.axvline(edge, color=PAPER, linewidth=0.6, alpha=0.5)
    middle = codes.shape[1] / 2
    for code, name in enumerate(("context", r"$\alpha$", r"$\beta$", r"$\gamma$"), start=1):
        rows, columns = np.nonzero(codes == code)
        sides = (columns < middle, columns >= middle) if code > 2 else (columns >= 0,)
        for side in sides:
            place = columns[side].mean(), rows[side].mean()
            text(axes, *place, name, color=PAPER, fontsize=13, weight="bold")


# --------------------------------------------------------------------------------- the gradients

# Yeo's colours of the seven networks, the light ones darkened to be seen on white.
NETWORKS = {  # beginning of the name in a Schaefer label: (name, colour)
    "Vis": ("visual", "#781286"),
    "SomMot": ("somatomotor", "#4682b4"),
    "DorsAttn": ("dorsal attention", "#00760e"),
    "SalVentAttn": ("salience", "#c43afa"),
    "Limbic": ("limbic", "#c8b560"),
    "Cont": ("control", "#e69422"),
    "Default": ("default mode", "#cd3e4e"),
    "": ("subcortex", "#8c959f"),
}
CORTEX_VERTICES = "datasets/surfaces/conte69_32k_lh.gii"  # in BrainSpace


def networks_of(labels: Sequence[str]) -> np.ndarray | None:
    """Index into NETWORKS of each ROI, if these are labels of Schaefer's atlas; else None."""
    names = list(NETWORKS)
    networks = np.full(len(labels), names.index(""))
    for i, label in enumerate(labels):
        if match := re.match(r"(?:7|17)Networks_[LR]H_([A-Za-z]+)", label):
            name = match[1].replace("TempPar", "Default")  # its place among the seven
            networks[i] = next(k for k, start in enumerate(names) if name.startswith(start))
    return networks if (networks < len(names) - 1).any() else None


def draw_cortical_gradients(path: Path) -> None:
    """Gradients of the group FC that comes with BrainSpace: the mean of HCP people."""
    from brainspace.datasets import load_group_fc, load_parcellation  # here, as it takes seconds

    gradients, _ = diffusion_gradients(load_group_fc("schaefer", scale=400))
    labels = make_atlas(450).labels[50:]  # the order and sizes of the networks are Schaefer's own
    figure, axes = card(13.2, 4.9)
    title(axes, 2.5, 4.32, "gradients on the cortex", "group FC of HCP, Schaefer-400")
    parcels, _ = load_parcellation("schaefer", scale=400)  # left hemisphere, 0: no parcel
    for component, y in enumerate((2.1, 0.25)):
        values = np.concatenate(([np.nan], gradients[:, component]))[parcels.astype(int)]
        text(axes, 0.36, y + 0.85, str(component + 1), weight="bold", fontsize=13)
        paint_cortex(inset(figure, 0.5, y, 2.05, 1.7), values, medial=False)
        paint_cortex(inset(figure, 2.55, y, 2.05, 1.7), values, medial=True)
    draw_gradient_space(figure, axes, gradients, networks_of(labels), left=5.3)
    save(figure, path)


def draw_gradients(folder: DataFolder, gradient_csv: Path, path: Path) -> None:
    """The gradients computed for a data-set folder."""
    gradients = load_gradients(gradient_csv, folder.n_rois, roi_labels=folder.roi_labels)
    if gradients.shape[1] < 2:
        raise UserError(f"{gradient_csv} has 1 column; two gradients are needed for a picture.")
    figure, axes = card(8.5, 4.9)
    draw_gradient_space(figure, axes, gradients, networks_of(folder.roi_labels), left=0.6)
    save(figure, path)


def draw_gradient_space(
    figure: Figure, axes: Axes, gradients: np.ndarray, networks: np.ndarray | None, left: float
) -> None:
    """ROIs by their first two gradients, and how alike their positions are by all of them."""
    scatter = inset(figure, left, 0.55, 3.4, 3.25)
    title(axes, left + 1.7, 4.32, "ROIs in gradient space", "each dot an ROI")
    scatter.set_xlabel("gradient 1", color=MUTED, fontsize=10)
    scatter.set_ylabel("gradient 2", color=MUTED, fontsize=10)
    style = {"s": 22, "linewidth": 0.4, "edgecolor": PAPER}
    order = np.lexsort((gradients[:, 0],) if networks is None else (gradients[:, 0], networks))

    x, size = left + 4.35, 3.25
    matrix = inset(figure, x, 0.55, size, size)
    unit = gradients[order] / np.linalg.norm(gradients[order], axis=1, keepdims=True)
    matrix.imshow(unit @ unit.T, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    note = f"cosine over {gradients.shape[1]} gradients; red: alike"
    title(axes, x + size / 2, 4.32, "similarity of ROIs", note)

    if networks is None:
        scatter.scatter(*gradients[:, :2].T, color=BLOCK_COLORS["context"], **style)
        matrix.set_xlabel("ROIs, by gradient 1", color=MUTED, fontsize=10)
        return
    matrix.set_xlabel("ROIs, by network", color=MUTED, fontsize=10)
    strip = inset(figure, x - 0.17, 0.55, 0.12, size)
    colors = ListedColormap([color for _, color in NETWORKS.values()])
    strip.imshow(networks[order, None], cmap=colors, vmin=0, vmax=colors.N - 1, aspect="auto")
    strip.spines[:].set_visible(False)
    for k, (name, color) in enumerate(NETWORKS.values()):
        if (networks == k).any():
            scatter.scatter(*gradients[networks == k, :2].T, color=color, label=name, **style)
    scatter.legend(fontsize=8, frameon=False, handletextpad=0.1, labelspacing=0.35)


def paint_cortex(axes: Axes, values: np.ndarray, medial: bool) -> None:
    """The left hemisphere from outside or from the middle, coloured by a value per vertex [V]."""
    surface = nib.load(Path(find_spec("brainspace").origin).parent / CORTEX_VERTICES)
    points, triangles = surface.agg_data(("pointset", "triangle"))
    viewer = 1.0 if medial else -1.0  # side of the x axis; y points to the front, z up
    corners = points[triangles]  # [F, 3, 3]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facing = viewer * normals[:, 0] / np.linalg.norm(normals, axis=1)
    order = np.argsort(viewer * corners[:, :, 0].mean(axis=1))  # nearest last
    order = order[facing[order] > 0]
    scaled = (values - np.nanmin(values)) / np.ptp(values[np.isfinite(values)])
    colors = colormaps["viridis"](scaled[triangles[order]].mean(axis=1))
    colors[np.isnan(scaled[triangles[order]]).any(axis=1)] = (0.8, 0.8, 0.8, 1)
    colors[:, :3] *= (0.45 + 0.55 * facing[order])[:, None]
    faces = corners[order][:, :, 1:] * (viewer, 1)
    axes.add_collection(PolyCollection(faces, facecolors=colors, edgecolors=colors, linewidths=0.2))
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.axis("off")


# ---------------------------------------------------------------------------------- command line


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Draw the figures of the README, method.png and gradients.png."
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write; default: scripts/figures, or the folder of the gradients",
    )
    parser.add_argument(
        "--data_dir", type=Path, help="draw the gradients of this data-set folder only"
    )
    parser.add_argument(
        "--gradients", type=Path, help="its gradients, if not gradients.csv in the folder"
    )
    args = parser.parse_args()
    if args.data_dir is None:
        if args.gradients is not None:
            raise UserError(f"--gradients {args.gradients} needs --data_dir, for the ROI labels.")
        out = args.out or ROOT / "scripts/figures"
        draw_method(out / "method.png")
        draw_cortical_gradients(out / "gradients.png")
    else:
        gradient_csv = args.gradients or args.data_dir / "gradients.csv"
        out = args.out or gradient_csv.parent
        draw_gradients(DataFolder(args.data_dir), gradient_csv, out / "gradients.png")
    print(f"drawn in {out}")


if __name__ == "__main__":
    run_main(main)
