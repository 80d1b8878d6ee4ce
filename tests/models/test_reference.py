"""The model reproduces the released implementation (method 4): outputs, loss and gradients.

``tests/reference`` holds what the released code gave on tiny models with random weights.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from src.models.jepa import jepa_loss, jepa_targets
from src.models.layers import apply_masks
from src.models.vision_transformer import VisionTransformer, VisionTransformerPredictor

REFERENCE = Path(__file__).parents[1] / "reference"
OUTPUT_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4  # relative


def strip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): value for name, value in state.items()}


@pytest.fixture(params=["mapping", "origin"])
def add_w(request):
    return request.param


@pytest.fixture
def case(add_w):
    return dict(np.load(REFERENCE / f"tiny_{add_w}.npz"))


@pytest.fixture(params=["normal", "sdpa", "flash_attn"])
def networks(request, case, add_w):
    rois, width, depth, heads, predictor_width, predictor_depth, _ = map(int, case["config"])
    gradient = torch.from_numpy(case["gradient"])[None]
    common = {"gradient_pos_embed": gradient, "attn_mode": request.param, "add_w": add_w}
    make = {
        "img_size": (rois, 160),
        "patch_size": 16,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        **common,
    }
    encoder, target_encoder = VisionTransformer(**make), VisionTransformer(**make)
    predictor = VisionTransformerPredictor(
        num_patches=rois * 10,
        num_patches_2d=(rois, 10),
        embed_dim=width,
        predictor_embed_dim=predictor_width,
        depth=predictor_depth,
        num_heads=heads,
        **common,
    )
    released = torch.load(REFERENCE / f"tiny_{add_w}.pth.tar", weights_only=True)
    for network, key in (
        (encoder, "encoder"),
        (target_encoder, "target_encoder"),
        (predictor, "predictor"),
    ):
        missing, unexpected = network.load_state_dict(strip(released[key]), strict=False)
        assert not unexpected
        assert missing == (["gradient_pos_embed"] if add_w == "mapping" else [])
    return encoder, target_encoder, predictor


def assert_agrees(ours: torch.Tensor, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert (ours.detach() - torch.from_numpy(theirs)).abs().max() <= OUTPUT_TOLERANCE


def test_outputs_loss_and_gradients_agree(case, networks):
    encoder, target_encoder, predictor = networks
    x, masks_enc, masks_pred = (
        torch.from_numpy(case[name]) for name in ("x", "masks_enc", "masks_pred")
    )
    assert_agrees(encoder.pos_embed_proj(encoder.gradient_pos_embed), case["pos_embed"])
    assert_agrees(encoder.patch_embed(x), case["patch_embed_out"])
    assert_agrees(encoder(x), case["encoder_out"])
    context = encoder(x, masks_enc)
    assert_agrees(context, case["encoder_masked_out"])
    prediction = predictor(context, masks_enc, masks_pred)
    assert_agrees(prediction, case["predictor_out"])
    assert_agrees(apply_masks(jepa_targets(target_encoder, x), masks_pred), case["target"])
    loss = jepa_loss(encoder, target_encoder, predictor, x, masks_enc, masks_pred)
    assert_agrees(loss, case["loss"])

    loss.backward()
    names = 0
    for part, network in (("encoder", encoder), ("predictor", predictor)):
        trainable = {n: p for n, p in network.named_parameters() if p.requires_grad}
        expected = {k.split("/", 2)[2] for k in case if k.startswith(f"grad/{part}/")}
        assert set(trainable) == expected
        for name, parameter in trainable.items():
            theirs = torch.from_numpy(case[f"grad/{part}/{name}"])
            error = (parameter.grad - theirs).norm() / theirs.norm().clamp_min(1e-12)
            # The bias before a min-max rescaling moves nothing: both gradients are rounding noise.
            if theirs.norm() < 1e-7:
                assert parameter.grad.norm() < 1e-6, name
            else:
                assert error <= GRADIENT_TOLERANCE, f"{name}: {error:.1e}"
            names += 1
    assert names > 40
