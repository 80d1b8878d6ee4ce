"""Pictures of masks show what was drawn."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from src.masks.collator import MaskCollator
from src.masks.draw import BLOCK_COLORS, block_grid, draw_masks, rows_by_block
from src.masks.forecast import ForecastMasks
from src.masks.multiblock import MultiblockMasks
from src.masks.roi import RoiMasks
from src.masks.spatiotemporal import SpatiotemporalMasks

GRID = (60, 10)


def draw(n_steps=6, **options):
    collator = MaskCollator(SpatiotemporalMasks(*GRID, **options))
    return [collator.sample(2, step) for step in range(n_steps)]


def colors(path):
    pixels = (imread(path)[..., :3] * 255).round().astype(int)
    packed = np.unique(pixels @ (1, 256, 256**2))
    return {(p % 256, p // 256 % 256, p // 256**2) for p in packed.tolist()}


def blocks_in(path) -> set[str]:
    """The blocks whose colour is in a picture, in the panels or in the legend."""
    of_blocks = {
        name: tuple(int(255 * c + 0.5) for c in to_rgb(color))
        for name, color in BLOCK_COLORS.items()
    }
    there = colors(path)
    return {name for name, color in of_blocks.items() if color in there}


def test_block_grid_tells_the_blocks_apart():
    masks = draw()[2]
    codes = block_grid(masks, 1, GRID)
    for code, tokens in enumerate((masks.context, *masks.blocks.values()), start=1):
        assert np.array_equal(np.flatnonzero(codes == code), np.sort(tokens[1]))


def test_block_grid_shows_targets_inside_an_overlapping_context():
    masks = draw(allow_overlap=True)[0]
    codes = block_grid(masks, 0, GRID)
    assert np.array_equal(np.flatnonzero(codes == 2), np.sort(masks.blocks["alpha"][0]))
    assert (codes == 1).sum() > masks.context.shape[1]


def pieces(rows: np.ndarray) -> int:
    """Into how many runs of neighbouring rows the marked ones fall."""
    return int((np.diff(rows.astype(int), prepend=0) == 1).sum())


def test_rearranged_rows_of_a_block_lie_together():
    context, alpha, beta, gamma = range(1, 5)
    for masks in draw(30):
        codes = block_grid(masks, 0, GRID)
        order = rows_by_block(codes)
        assert np.array_equal(np.sort(order), np.arange(GRID[0]))
        left, right = codes[order, :5], codes[order, 5:]
        for sides, block, most in (
            ((codes[order],), context, 1),
            ((codes[order],), alpha, 1),
            ((left, right), beta, 1),
            ((right,), gamma, 1),
            ((left,), gamma, 2),
        ):
            for side in sides:
                assert pieces((side == block).any(axis=1)) <= most


def test_draw_masks_paints_every_block(tmp_path):
    masks = draw()
    assert any(m.blocks["beta"].size and m.blocks["gamma"].size for m in masks)
    draw_masks(masks, GRID, tmp_path / "masks.png")
    expected = {"unused", "context", "alpha", "beta", "gamma"}
    assert blocks_in(tmp_path / "masks.png") == expected


@pytest.mark.parametrize(
    ("mode", "blocks"),
    [
        (RoiMasks(*GRID), {"unused", "context", "alpha"}),
        (RoiMasks(*GRID, (0.5, 0.5), (0.5, 0.5)), {"context", "alpha"}),
        (ForecastMasks(*GRID), {"unused", "context", "beta", "gamma"}),
        (MultiblockMasks(*GRID), {"unused", "context", "target"}),
    ],
)
def test_the_picture_and_its_legend_show_the_blocks_of_the_mode(mode, blocks, tmp_path):
    masks = [MaskCollator(mode).sample(2, 0)]
    draw_masks(masks, GRID, tmp_path / "masks.png")
    assert blocks_in(tmp_path / "masks.png") == blocks
    height = imread(tmp_path / "masks.png").shape[0]
    draw_masks(draw(1), GRID, tmp_path / "both.png")
    one_row = height < imread(tmp_path / "both.png").shape[0]
    assert one_row == isinstance(mode, MultiblockMasks), "rearranging shows nothing more"
