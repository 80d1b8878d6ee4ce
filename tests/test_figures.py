"""Pictures show what was drawn, and a log that is none is refused."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from src.datasets.folder import DataFolder
from src.utils.errors import UserError
from src.utils.figures import draw_curves


def colors(path):
    pixels = (imread(path)[..., :3] * 255).round().astype(int)
    packed = np.unique(pixels @ (1, 256, 256**2))
    return {(p % 256, p // 256 % 256, p // 256**2) for p in packed.tolist()}


@pytest.fixture
def log():
    step = np.arange(1, 41)
    return pd.DataFrame({"epoch": 1, "itr": step, "loss": 1 / step, "step": step})


def test_draw_curves_adds_a_panel_for_each_monitor(tmp_path, log):
    log.to_csv(tmp_path / "log.csv", index=False)
    draw_curves(tmp_path / "log.csv", tmp_path / "loss.png")
    log["variance"] = np.where(log["step"] % 10, np.nan, 0.5)
    log["rankme"] = np.nan  # never measured
    log.to_csv(tmp_path / "log.csv", index=False)
    draw_curves(tmp_path / "log.csv", tmp_path / "both.png")
    one, two = (imread(tmp_path / name).shape for name in ("loss.png", "both.png"))
    assert two == (one[0], 2 * one[1], one[2])


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
    path = Path(__file__).parents[1] / "scripts/draw_figures.py"
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
