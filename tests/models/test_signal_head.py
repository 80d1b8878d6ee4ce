"""The head that reads the signal of hidden patches off the predictor (method 11.4)."""

import torch

from src.models.vision_transformer import VisionTransformerPredictor

ROIS, PATCHES, WIDTH = 5, 3, 24


def predictor(**options: object) -> VisionTransformerPredictor:
    torch.manual_seed(0)
    return VisionTransformerPredictor(
        num_patches=ROIS * PATCHES,
        num_patches_2d=(ROIS, PATCHES),
        embed_dim=WIDTH,
        predictor_embed_dim=16,
        depth=1,
        num_heads=2,
        add_w="origin",
        **options,
    )


def test_the_head_is_there_only_where_it_is_asked_for_and_changes_no_other_weight():
    without, with_head = predictor(), predictor(signal_patch_size=8)
    assert without.signal_head is None
    assert not [name for name in without.state_dict() if "signal" in name]
    assert with_head.signal_head.weight.shape == (8, 16)
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_head.state_dict()[name]), name


def test_latent_and_signal_are_read_off_the_same_features():
    network = predictor(signal_patch_size=8)
    seen = torch.randn(2, 4, WIDTH)
    context = torch.tensor([[0, 3, 7, 9], [1, 2, 5, 14]])
    target = torch.tensor([[1, 2], [0, 3]])
    features = network.features(seen, context, target)
    assert features.shape == (2, 2, 16)
    torch.testing.assert_close(features, network.predictor_norm(features))  # already normalised
    assert torch.equal(network.predictor_proj(features), network(seen, context, target))
    assert network.signal_head(features).shape == (2, 2, 8)
