"""The attention bias against its dense form, in which it is a matrix that timm's attention adds."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.helper import init_model, init_opt
from src.models.attention_bias import AttentionBias, spread_features
from src.models.layers import apply_masks
from src.models.vision_transformer import VisionTransformer, VisionTransformerPredictor
from src.utils.errors import UserError
from tests.conftest import tiny_config

ROIS, PATCHES, GRADIENTS = 7, 4, 5
SHAPE = (ROIS, PATCHES * 8)
SEEN = torch.tensor([[0, 3, 5, 9, 14, 27], [1, 2, 8, 11, 20, 26]])
ALSO_SEEN = torch.tensor([[4, 6, 7, 15, 22, 23], [0, 10, 12, 13, 24, 25]])
HIDDEN = torch.tensor([[1, 10, 21], [4, 15, 27]])
ALSO_HIDDEN = torch.tensor([[2, 12, 26], [3, 9, 16]])


def make_encoder(**settings):
    torch.manual_seed(0)
    encoder = VisionTransformer(
        img_size=SHAPE,
        patch_size=8,
        **{
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 4,
            "init_scheme": "fan_in",
            "gradient_pos_embed": torch.randn(1, ROIS, GRADIENTS),
            "attention_bias": "gradient",
            **settings,
        },
    )
    return trained(encoder)


def make_predictor(encoder, **settings):
    return trained(
        VisionTransformerPredictor(
            num_patches=encoder.num_patches,
            num_patches_2d=encoder.num_patches_2d,
            embed_dim=24,
            predictor_embed_dim=16,
            num_heads=4,
            init_scheme="fan_in",
            gradient_pos_embed=encoder.gradient_pos_embed,
            attention_bias="gradient",
            **{"depth": 2, **settings},
        )
    )


def trained(network):
    """Not at its start, where L is symmetric."""
    with torch.no_grad():
        for parameter in network.attention_bias.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network


def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 1, *SHAPE)


# --- the dense form ------------------------------------------------------------------------------


def dense_bias(network, tokens):
    """Method 10, term by term: ``[B, heads, K, K]`` for tokens ``[B, K]``."""
    bias = network.attention_bias
    gradients = network.gradient_pos_embed[0].numpy()
    places = np.stack([column / np.sqrt(column.std()) for column in gradients.T], axis=1)
    places = torch.from_numpy(places / np.median(pdist(places))).float()
    roi, patch = tokens // PATCHES, tokens % PATCHES
    apart = places[roi].unsqueeze(2) - places[roi].unsqueeze(1)  # [B, K, K, G]
    lag = (patch.unsqueeze(2) - patch.unsqueeze(1)).abs()
    heads = [
        -torch.einsum("ij,bkqj->bkqi", matrix, apart).square().sum(-1) - slope * lag
        for matrix, slope in zip(bias.transform, bias.slope, strict=True)
    ]
    return torch.stack(heads, dim=1)


def dense_blocks(blocks, x, bias):
    for block in blocks:
        x = block(x, attn_mask=bias)
    return x


def dense_encoder(encoder, x, masks=None):
    """timm's own blocks, with the matrix."""
    if isinstance(masks, list):
        return torch.cat([dense_encoder(encoder, x, mask) for mask in masks])
    tokens = torch.arange(ROIS * PATCHES).expand(len(x), -1) if masks is None else masks
    return encoder.norm(
        dense_blocks(encoder.blocks, encoder.embed(x, masks), dense_bias(encoder, tokens))
    )


def dense_predictor(predictor, x, masks_x, masks):
    """One context and one target mask."""
    positions = predictor.predictor_2dpe_proj(predictor.gradient_pos_embed).expand(len(x), -1, -1)
    x = predictor.predictor_embed(x) + apply_masks(positions, masks_x)
    x = torch.cat([x, predictor.mask_token + apply_masks(positions, masks)], dim=1)
    bias = dense_bias(predictor, torch.cat([masks_x, masks], dim=1))
    x = dense_blocks(predictor.predictor_blocks, x, bias)
    return predictor.predictor_proj(predictor.predictor_norm(x)[:, masks_x.shape[1] :])


def assert_same(network, ours, dense):
    """Outputs, and gradients of all parameters."""
    torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(dense)
    gradients = [
        torch.autograd.grad((out * weights).sum(), list(network.parameters()), retain_graph=True)
        for out in (ours, dense)
    ]
    for (name, _), one, other in zip(network.named_parameters(), *gradients, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale + 1e-5, msg=name)
    for name in ("transform", "slope"):
        assert getattr(network.attention_bias, name).requires_grad


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa"])
@pytest.mark.parametrize("masks", [None, SEEN, [SEEN, ALSO_SEEN]])
@pytest.mark.parametrize(
    "settings", [{}, {"bias_components": 2}, {"gradient_checkpointing": True}, {"num_heads": 3}]
)
def test_the_encoder_is_that_of_the_dense_form(attn_mode, masks, settings):
    encoder, x = make_encoder(attn_mode=attn_mode, **settings), inputs()
    assert_same(encoder, encoder(x, masks), dense_encoder(encoder, x, masks))


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_predictor_is_that_of_the_dense_form(attn_mode, checkpointing):
    encoder, x = make_encoder(), inputs()
    predictor = make_predictor(encoder, attn_mode=attn_mode, gradient_checkpointing=checkpointing)
    context = encoder(x, [SEEN, ALSO_SEEN]).detach()
    ours = predictor(context, [SEEN, ALSO_SEEN], [HIDDEN, ALSO_HIDDEN])
    dense = [
        dense_predictor(predictor, part, seen, hidden)
        for hidden in (HIDDEN, ALSO_HIDDEN)
        for part, seen in zip(context.chunk(2), (SEEN, ALSO_SEEN), strict=True)
    ]
    assert_same(predictor, ours, torch.cat(dense))


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa"])
@pytest.mark.parametrize("settings", [{}, {"depth": 1}, {"qkv_bias": False}])
def test_the_last_block_at_some_tokens(attn_mode, settings):
    encoder, x = make_encoder(attn_mode=attn_mode, **settings), inputs()
    dense = dense_encoder(encoder, x)
    assert_same(encoder, encoder(x, read_at=HIDDEN), apply_masks(dense, HIDDEN))
    both = [HIDDEN, ALSO_HIDDEN]
    assert_same(encoder, encoder(x, read_at=both), apply_masks(dense, both))
    within = torch.tensor([[0, 5], [3, 1]])  # of the six tokens seen
    dense = apply_masks(dense_encoder(encoder, x, SEEN), within)
    assert_same(encoder, encoder(x, SEEN, read_at=within), dense)


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa"])
@pytest.mark.parametrize("masks", [None, SEEN])
def test_attention_maps_include_it(attn_mode, masks):
    encoder, x = make_encoder(attn_mode=attn_mode).eval(), inputs()
    tokens, maps = encoder(x, masks, return_attention=True)
    torch.testing.assert_close(tokens, encoder(x, masks))
    block, normed = encoder.blocks[0], encoder.blocks[0].norm1(encoder.embed(x, masks))
    where = torch.arange(ROIS * PATCHES).expand(2, -1) if masks is None else masks
    q, k, _ = block.attn.qkv(normed).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4)
    products = q @ k.mT / 6**0.5 + dense_bias(encoder, where)
    torch.testing.assert_close(maps[0], products.softmax(-1), rtol=1e-4, atol=1e-6)


def test_it_compiles():
    encoder, x = make_encoder(depth=1), inputs()
    predictor = make_predictor(encoder, depth=1)

    def predict(seen, hidden):
        return predictor(encoder(x, seen), seen, hidden)

    compiled = torch.compile(predict, dynamic=True, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(SEEN, HIDDEN), predict(SEEN, HIDDEN))


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa"])
def test_in_bfloat16_the_bias_is_nearly_exact(attn_mode):
    """Far from their mean, where what cancels is largest: 5 of 450 ROIs in one corner."""
    torch.manual_seed(0)
    gradients = torch.randn(1, 450, 30)
    gradients[:, :5] = 4 + 0.1 * torch.randn(1, 5, 30)
    encoder = VisionTransformer(
        img_size=(450, 32),
        patch_size=16,
        embed_dim=192,
        depth=1,
        num_heads=3,
        attn_mode=attn_mode,
        gradient_pos_embed=gradients,
        attention_bias="gradient",
    )
    with torch.no_grad():
        encoder.blocks[0].attn.qkv.weight[:384] = 0  # the bias alone
        x = torch.randn(1, 1, 450, 32)
        exact = encoder(x, return_attention=True)[1][0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens, (rounded,) = encoder(x, return_attention=True)
        full = encoder(x)
    difference = 0.5 * (rounded - exact).abs().sum(-1)  # total variation of each query's weights
    assert difference.max() < 0.05
    assert difference.mean() < 0.01
    assert (tokens - full).norm() < 0.02 * full.norm()


# --- what it starts as, and refuses --------------------------------------------------------------


def test_it_starts_from_far_to_near():
    gradients = torch.randn(1, ROIS, GRADIENTS)
    for heads, squares, slopes in (
        (1, [1], [0.3]),
        (2, [1, 4], [0.3, 1.5]),
        (3, [1, 4, 12], [0.3, 1.5, 3]),
        (5, [1, 12**0.25, 12**0.5, 12**0.75, 12], [0.3 * 10 ** (i / 4) for i in range(5)]),
    ):
        bias = AttentionBias((ROIS, PATCHES), heads, gradients)
        expected = torch.eye(GRADIENTS) * torch.tensor(squares).sqrt()[:, None, None]
        torch.testing.assert_close(bias.transform.detach(), expected)
        torch.testing.assert_close(bias.slope.detach(), torch.tensor(slopes))


def test_fewer_components_map_all_gradients_and_begin_with_the_first():
    """Of gradients in the order of their variance this is the start nearest to that of all."""
    torch.manual_seed(0)
    gradients = torch.linalg.qr(torch.randn(ROIS, GRADIENTS + 1))[0][:, 1:]
    gradients = gradients - gradients.mean(0)
    gradients = torch.linalg.svd(gradients, full_matrices=False)[0] * torch.tensor(
        [5.0, 3.0, 2.0, 1.0, 0.5]
    )
    bias = AttentionBias((ROIS, PATCHES), 3, gradients[None], components=2)
    assert bias.transform.shape == (3, 2, GRADIENTS)
    places = spread_features(gradients)
    axes = torch.linalg.svd(places - places.mean(0))[2][:2]
    for matrix, scale in zip(bias.transform.detach(), (1, 4, 12), strict=True):
        begun = torch.pdist(places @ matrix.T)
        torch.testing.assert_close(begun, scale**0.5 * torch.pdist(places @ axes.T))


def test_places_have_a_median_distance_of_one():
    """And columns in the proportion of the square root of their SD; a constant one says nothing."""
    torch.manual_seed(0)
    features = torch.randn(50, 3) * torch.tensor([4.0, 1.0, 0.0]) + 3
    places = spread_features(features)
    assert np.median(pdist(places.numpy())) == pytest.approx(1, abs=1e-5)
    sd = places.std(0) / features.std(0).sqrt()
    assert sd[0].item() == pytest.approx(sd[1].item(), rel=1e-4)
    assert places[:, 2].abs().max() == 0


def test_the_other_weights_begin_as_without():
    """It draws no random number, and at the default there is no weight of it."""
    with_bias, without = make_encoder(), make_encoder_without()
    shared = without.state_dict()
    added = {name for name in with_bias.state_dict() if name not in shared}
    assert added == {"attention_bias.transform", "attention_bias.slope"}
    for name, value in shared.items():
        assert torch.equal(with_bias.state_dict()[name], value), name


def make_encoder_without(**settings):
    torch.manual_seed(0)
    gradients = torch.randn(1, ROIS, GRADIENTS)
    return VisionTransformer(
        img_size=SHAPE,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=4,
        init_scheme="fan_in",
        gradient_pos_embed=gradients,
        **settings,
    )


def test_weight_decay_leaves_it_alone(tmp_path):
    config = tiny_config(tmp_path, tmp_path, "meta.attention_bias=gradient")
    networks = init_model(config, torch.randn(config.grid[0], 4), torch.device("cpu"))
    optimizer, _ = init_opt(networks, config, 10)
    decayed, others = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    for network in (networks.encoder, networks.predictor):
        assert {id(p) for p in network.attention_bias.parameters()} <= others
        weights = {id(p) for _, p in network.named_parameters() if p.ndim > 1}
        assert weights - decayed == {id(network.attention_bias.transform)}


def test_what_has_no_distances_is_refused():
    with pytest.raises(UserError, match=r"needs gradients.*add_w: mapping"):
        make_encoder(add_w="origin")
    with pytest.raises(UserError, match="bias_components is 9, but the ROIs have 5"):
        make_encoder(bias_components=9)
    with pytest.raises(UserError, match="bias_slopes has 1 values, but there are 2 heads"):
        make_encoder(num_heads=2, bias_slopes=[1.0])
    with pytest.raises(ValueError, match="'grad'; allowed: none, gradient"):
        make_encoder(attention_bias="grad")


def test_the_heads_begin_as_they_are_told():
    features = torch.randn(1, ROIS, GRADIENTS)
    bias = AttentionBias((ROIS, 4), 2, features, scales=[4, 49], slopes=[0.5, 3])
    roots = bias.transform.diagonal(dim1=1, dim2=2)
    assert torch.equal(roots, torch.tensor([[2.0], [7.0]]).expand_as(roots))
    assert bias.slope.tolist() == [0.5, 3.0]


# --- memory --------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return out


@pytest.mark.parametrize(("attn_mode", "fits"), [("sdpa", True), ("normal", False)])
def test_no_matrix_of_all_tokens(attn_mode, fits):
    """Neither forward nor backward; plain attention, which has one, shows that this is seen."""
    rois, patches = 60, 20
    settings = {"attn_mode": attn_mode, "gradient_pos_embed": torch.randn(1, rois, 4)}
    torch.manual_seed(0)
    encoder = VisionTransformer(
        (rois, patches), 1, embed_dim=8, depth=2, num_heads=2, attention_bias="gradient", **settings
    )
    tokens = rois * patches
    with Largest() as largest:
        encoder(torch.randn(1, 1, rois, patches)).sum().backward()
    assert (largest.numel < tokens**2) is fits
    if fits:  # queries, keys and values of all heads, 4 + 4 + 1 + 19 numbers wide in 8s; MLP 32
        assert largest.numel <= 2 * 36 * tokens
