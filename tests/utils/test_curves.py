"""Pictures show what was drawn, and a log that is none is refused."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from src.datasets.folder import DataFolder
from src.utils.curves import PANELS, curves_figure, draw_curves
from src.utils.errors import UserError


def colors(path):
    pixels = (imread(path)[..., :3] * 255).round().astype(int)
    packed = np.unique(pixels @ (1, 256, 256**2))
    return {(p % 256, p // 256 % 256, p // 256**2) for p in packed.tolist()}


@pytest.fixture
def log():
    step = np.arange(1, 41)
    return pd.DataFrame({"epoch": 1, "itr": step, "loss": 1 / step, "step": step})


MONITORS = {
    "signal_r2": 0.2,
    "forecast_r2": 0.3,
    "r2": -2.4,
    "r2_clip_constant": -2.5,
    "r2_swapped": -2.4,
    "variance": 0.5,
    "variance_share": 0.83,
    "rankme": 32.0,
}


def with_monitors(log, drift=1e-3, **start):
    """The log with monitors at every tenth step that move away from ``start``."""
    drift = 1 + drift * log["step"]
    for name, value in start.items():
        log[name] = np.where(log["step"] % 10, np.nan, value * drift)
    return log.set_index("step")


def test_a_panel_for_everything_logged_and_no_empty_place(log):
    names = ["variance", "rankme", "variance_share", "r2", "signal_r2"]
    for count in range(6):
        kept = {name: MONITORS[name] for name in names[:count]}
        figure = curves_figure(with_monitors(log.copy(), **kept).assign(r2_swapped=np.nan))
        assert len(figure.axes) == 1 + count
        grid = figure.axes[0].get_gridspec()
        places = [axes.get_subplotspec() for axes in figure.axes]
        filled = [(r, c) for p in places for r in p.rowspan for c in p.colspan]
        assert len(filled) == len(set(filled)) == grid.nrows * grid.ncols


def test_what_was_measured_before_the_first_step_is_drawn_at_step_0(log):
    figure = curves_figure(with_monitors(log, **MONITORS), start=MONITORS)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    for name, label in (PANELS[1].columns | PANELS[2].columns).items():
        assert lines[label].get_xdata().tolist() == [0, 10, 20, 30, 40]
        assert lines[label].get_ydata()[0] == MONITORS[name]
    for axes in figure.axes:
        assert axes.get_xlim() == (0, 40)


def test_what_random_weights_know_of_the_signal_is_a_dashed_line_inside_the_axes(log):
    untrained = MONITORS | {"signal_r2": 0.4, "forecast_r2": np.nan}
    figure = curves_figure(with_monitors(log, **MONITORS), MONITORS, untrained)
    dashed = [
        (axes, line) for axes in figure.axes for line in axes.lines if line.get_linestyle() == "--"
    ]
    ((axes, line),) = dashed  # nothing of what says no more in comparison with random weights
    assert axes.get_title() == PANELS[1].title
    assert set(line.get_ydata()) == {0.4}
    assert line.get_color() == axes.lines[0].get_color()
    assert axes.get_ylim()[1] > 0.4


def test_a_curve_that_hardly_moves_looks_flat(log):
    log["loss"] = 0.3 + 1e-3 * np.sin(log["step"])
    figure = curves_figure(with_monitors(log, **MONITORS), start=MONITORS)
    assert len(figure.axes) == len(PANELS)
    for axes in figure.axes:
        height = axes.bbox.height
        for line in axes.lines:
            pixels = axes.transData.transform(line.get_xydata())[:, 1] - axes.bbox.y0
            assert np.ptp(pixels) < 0.05 * height
            assert (pixels >= -1e-6).all()
            assert (pixels <= height + 1e-6).all()


def test_a_share_that_doubles_and_stays_next_to_nothing_looks_flat(log):
    figure = curves_figure(with_monitors(log, drift=1 / 40, variance_share=1e-3, rankme=0.01))
    for axes in figure.axes[1:]:
        pixels = axes.transData.transform(axes.lines[0].get_xydata())[:, 1]
        assert np.ptp(pixels) < 0.05 * axes.bbox.height


def test_what_moves_is_inside_the_axes_and_seen_to_move(log):
    log["loss"] = np.geomspace(0.7, 0.01, 40)
    moving = {name: np.linspace(value, value / 10, 40) for name, value in MONITORS.items()}
    figure = curves_figure(log.assign(**moving).set_index("step"))
    for axes in figure.axes:
        pixels = axes.transData.transform(axes.lines[0].get_xydata())[:, 1]
        share = (pixels - axes.bbox.y0) / axes.bbox.height
        assert np.ptp(share) > 0.25
        assert (share >= 0).all()
        assert (share <= 1).all()


def test_draw_curves_reads_a_log_of_the_release(tmp_path, log):
    log.drop(columns="step").to_csv(tmp_path / "log.csv", index=False)
    draw_curves(tmp_path / "log.csv", tmp_path / "loss.png")
    assert len(colors(tmp_path / "loss.png")) > 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "cannot be read"),
        ("epoch,itr\n1,1\n", "no column of numbers named 'loss'"),
        ("loss\n0.5\nhigh\n", "no column of numbers named 'loss'"),
        ("loss,lr\n,0.1\n", "no loss yet"),
    ],
)
def test_a_file_that_is_no_log_is_a_user_error(tmp_path, text, message):
    path = tmp_path / "log.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        draw_curves(path, tmp_path / "loss.png")


# --------------------------------------------------------------------------- figures of the README


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "scripts/draw_figures.py"
    spec = importlib.util.spec_from_file_location("draw_figures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_networks_are_read_from_labels(script):
    labels = ("HIP-1-rh", "17Networks_LH_VisCent_ExStr_1", "17Networks_RH_TempPar_2")
    names = [list(script.NETWORKS)[k] for k in script.networks_of(labels)]
    assert names == ["", "Vis", "Default"]
    assert script.networks_of(("L_MTgyr_a", "N")) is None


def test_figures_are_drawn_on_a_white_card(script, tmp_path, make_folder):
    script.draw_method(tmp_path / "method.png")
    folder = DataFolder(make_folder())
    values = np.random.default_rng(0).standard_normal((folder.n_rois, 4))
    np.savetxt(tmp_path / "gradients.csv", values, delimiter=",")
    script.draw_gradients(folder, tmp_path / "gradients.csv", tmp_path / "new/gradients.png")
    for path in (tmp_path / "method.png", tmp_path / "new/gradients.png"):
        image = imread(path)
        assert image[0, 0, 3] == 0, "the corner is outside the card"
        assert (image[15, 15] > 0.98).all(), "the card is white and opaque"
        assert image[..., 3].mean() > 0.98


def test_one_gradient_is_a_user_error(script, tmp_path, make_folder):
    folder = DataFolder(make_folder())
    np.savetxt(tmp_path / "gradients.csv", np.arange(folder.n_rois), delimiter=",")
    with pytest.raises(UserError, match="two gradients are needed"):
        script.draw_gradients(folder, tmp_path / "gradients.csv", tmp_path / "gradients.png")
