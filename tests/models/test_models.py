"""Networks: shapes for any grid, masks, attention maps, initialisation, memory-saving options."""

from math import cos, pi, sin

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from src.models.jepa import jepa_loss, jepa_targets, update_target_encoder
from src.models.layers import apply_masks, block_at
from src.models.pos_embed import PositionEmbedding
from src.models.vision_transformer import (
    VisionTransformer,
    VisionTransformerPredictor,
    vit_base,
    vit_large,
    vit_small,
)

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def make_encoder(img_size=(6, 32), patch_size=8, **kwargs):
    torch.manual_seed(0)
    gradient = torch.randn(1, img_size[0], 4)
    settings = {**SMALL, "gradient_pos_embed": gradient, **kwargs}
    return VisionTransformer(img_size=img_size, patch_size=patch_size, **settings)


def make_predictor(encoder, **kwargs):
    rois = encoder.num_patches_2d[0]
    return VisionTransformerPredictor(
        num_patches=encoder.num_patches,
        num_patches_2d=encoder.num_patches_2d,
        embed_dim=encoder.embed_dim,
        predictor_embed_dim=16,
        depth=1,
        num_heads=2,
        gradient_pos_embed=torch.randn(1, rois, 4),
        **kwargs,
    )


@pytest.mark.parametrize(("img_size", "patch"), [((122, 160), 16), ((94, 32), 8), ((7, 6), 3)])
def test_any_grid(img_size, patch):
    encoder = make_encoder(img_size, patch)
    rois, frames = img_size
    assert encoder(torch.randn(2, 1, *img_size)).shape == (2, rois * frames // patch, 24)


@pytest.mark.parametrize(("make", "millions"), [(vit_small, 22), (vit_base, 86), (vit_large, 307)])
def test_published_sizes(make, millions):
    """Parameter counts and heads of method 3; a head is 64 wide in each of them."""
    with torch.device("meta"):
        encoder = make(gradient_pos_embed=torch.zeros(1, 450, 30), add_w="origin")
    count = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.04)
    assert {block.attn.head_dim for block in encoder.blocks} == {64}


def test_tokens_are_roi_major():
    encoder = make_encoder()
    x = torch.randn(1, 1, 6, 32)
    patches = encoder.patch_embed(x)
    weight, bias = encoder.patch_embed.proj.weight.flatten(1), encoder.patch_embed.proj.bias
    roi, patch = 4, 2
    expected = weight @ x[0, 0, roi, patch * 8 : patch * 8 + 8] + bias
    torch.testing.assert_close(patches[0, roi * 4 + patch], expected)


def test_masked_encoding_ignores_what_is_masked():
    encoder = make_encoder().eval()
    x = torch.randn(2, 1, 6, 32)
    masks = torch.tensor([[0, 1, 5, 9], [2, 3, 8, 23]])
    seen = encoder(x, masks)
    assert seen.shape == (2, 4, 24)
    changed = x.clone()
    changed[0, 0, 3] += 10  # ROI 3 holds tokens 12 to 15: not in the first sample's mask
    torch.testing.assert_close(encoder(changed, masks), seen)


def test_a_list_of_masks_is_concatenated_over_the_batch():
    encoder = make_encoder().eval()
    predictor = make_predictor(encoder).eval()
    x = torch.randn(2, 1, 6, 32)
    first, second = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4, 5], [6, 7]])
    both = encoder(x, [first, second])
    torch.testing.assert_close(both, torch.cat([encoder(x, first), encoder(x, second)]))
    targets = [torch.tensor([[9, 10], [11, 12]]), torch.tensor([[20, 21], [22, 23]])]
    out = predictor(both, [first, second], targets)
    assert out.shape == (8, 2, 24)
    expected = predictor(encoder(x, second), second, targets[1])  # last of both loops
    torch.testing.assert_close(out[-2:], expected)


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa", "flash_attn"])
def test_attention_maps_of_every_backend(attn_mode):
    encoder = make_encoder(attn_mode=attn_mode).eval()
    x = torch.randn(2, 1, 6, 32)
    tokens, maps = encoder(x, return_attention=True)
    assert torch.equal(tokens, encoder(x))
    assert not any(m.requires_grad for m in maps)
    assert [m.shape for m in maps] == [(2, 2, 24, 24)] * 2
    for attention in maps:
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 24))
    # They are the weights the block really uses: attention times values is its output.
    block = encoder.blocks[0]
    normed = block.norm1(encoder.embed(x))
    values = block.attn.qkv(normed).reshape(2, 24, 3, 2, 12).permute(2, 0, 3, 1, 4)[2]
    mixed = (maps[0] @ values).transpose(1, 2).reshape(2, 24, 24)
    torch.testing.assert_close(block.attn.proj(mixed), block.attn(normed), rtol=1e-4, atol=1e-6)
    tokens, masked = encoder(x, torch.tensor([[0, 5, 7], [1, 2, 3]]), return_attention=True)
    assert tokens.shape == (2, 3, 24)
    assert masked[1].shape == (2, 2, 3, 3)


def test_attention_maps_are_equal_for_every_backend():
    x = torch.randn(2, 1, 6, 32)
    normal, fused = (
        make_encoder(attn_mode=mode).eval()(x, masks=None, return_attention=True)[1]
        for mode in ("normal", "flash_attn")
    )
    for one, other in zip(normal, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("add_w", ["mapping", "anatomical", "origin"])
def test_networks_hold_their_gradients_in_their_state(add_w):
    """A file of either network is enough to build it again; origin has no gradients."""
    encoder = make_encoder(add_w=add_w)
    for network in (encoder, make_predictor(encoder, add_w=add_w)):
        state = network.state_dict()
        assert ("gradient_pos_embed" in state) == (add_w != "origin")
        if add_w != "origin":
            assert state["gradient_pos_embed"].shape == (1, 6, 4)
    given = torch.randn(1, 6, 4)
    other = make_encoder(add_w=add_w, gradient_pos_embed=given)
    other.load_state_dict(encoder.state_dict(), strict=True)
    x = torch.randn(1, 1, 6, 32)
    assert torch.equal(other(x), encoder(x))
    assert "gradient_pos_embed" not in dict(encoder.named_parameters())


# --- the last block at some tokens ---------------------------------------------------------------


def targets_everywhere(encoder, x, masks):
    """The targets by the full computation: every token of every block, then those of the masks."""
    return apply_masks(jepa_targets(encoder, x), masks)


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa", "flash_attn"])
@pytest.mark.parametrize("settings", [{}, {"qkv_bias": False}, {"depth": 1}])
def test_targets_at_their_tokens_are_those_of_the_full_computation(attn_mode, settings):
    encoder = make_encoder(attn_mode=attn_mode, init_scheme="fan_in", **settings)
    x, masks = torch.randn(2, 1, 6, 32), torch.tensor([[9, 15, 0], [23, 2, 11]])
    some = jepa_targets(encoder, x, masks)
    assert some.shape == (2, 3, 24)
    torch.testing.assert_close(some, targets_everywhere(encoder, x, masks), rtol=1e-5, atol=1e-5)
    both = encoder(x, read_at=[masks, masks.flip(1)])
    torch.testing.assert_close(
        both, torch.cat([encoder(x, read_at=m) for m in (masks, masks.flip(1))])
    )


def test_the_last_block_at_some_tokens_honours_norms_layer_scale_and_drop_path():
    """None of them is used here, all are part of a block."""
    torch.manual_seed(0)
    block = Block(
        24, 2, qkv_bias=True, qk_norm=True, init_values=0.3, drop_path=0.5, scale_attn_norm=True
    )
    x, at = torch.randn(2, 9, 24), torch.tensor([[1, 8], [4, 0]])
    for training in (False, True):
        block.train(training)
        torch.manual_seed(3)
        some = block_at(block, x, at)
        torch.manual_seed(3)
        torch.testing.assert_close(some, apply_masks(block(x), at), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa"])
def test_loss_and_gradients_are_those_of_targets_everywhere(attn_mode):
    results = []
    for targets in (jepa_targets, targets_everywhere):
        encoder = make_encoder(attn_mode=attn_mode, init_scheme="fan_in")
        target_encoder, predictor = make_encoder(init_scheme="fan_in"), make_predictor(encoder)
        x = torch.randn(2, 1, 6, 32)
        seen, hidden = torch.tensor([[0, 1, 2]] * 2), torch.tensor([[9, 15]] * 2)
        if targets is jepa_targets:
            loss = jepa_loss(encoder, target_encoder, predictor, x, seen, hidden)
        else:
            prediction = predictor(encoder(x, seen), seen, hidden)
            loss = F.smooth_l1_loss(prediction, targets(target_encoder, x, hidden))
        loss.backward()
        results.append(
            [loss.detach(), *(p.grad for n in (encoder, predictor) for p in n.parameters())]
        )
    for some, full in zip(*results, strict=True):
        torch.testing.assert_close(some, full, rtol=1e-4, atol=1e-6)


def test_the_last_block_at_some_tokens_saves_exactly_what_it_leaves_out():
    """At the published size, with 1100 targets: 5.8 % of the target encoder's operations.

    Per token left out: query and projection (D x D each), MLP (8 D x D), its row of attention.
    """
    tokens, kept, width = 4500, 1100, 768
    encoder = vit_base(add_w="origin", attn_mode="normal").to("meta")
    x = torch.empty(1, 1, 450, 160, device="meta")
    at = torch.empty(1, kept, dtype=torch.long, device="meta")
    counts = []
    for arguments in ({}, {"read_at": at}):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(x, **arguments)
        counts.append(counter.get_total_flops())
    saved = 2 * (tokens - kept) * (10 * width * width + 2 * tokens * width)
    assert counts[0] - counts[1] == saved
    assert saved / counts[0] == pytest.approx(0.058, abs=0.0005)


def test_the_last_block_copies_nothing_of_all_tokens_for_one_mask():
    encoder = make_encoder()
    x, masks = torch.randn(2, 1, 6, 32), torch.tensor([[9, 15, 0], [23, 2, 11]])
    for read_at, repeats in ((masks, 0), ([masks, masks], 1)):
        with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.no_grad():
            encoder(x, read_at=read_at)
        assert sum(event.name == "aten::repeat" for event in profiler.events()) == repeats


def test_the_targets_compile():
    encoder = make_encoder(init_scheme="fan_in")
    x, masks = torch.randn(2, 1, 6, 32), torch.tensor([[9, 15, 0], [23, 2, 11]])
    compiled = torch.compile(encoder, dynamic=True, backend="aot_eager", fullgraph=True)
    for at in (masks, masks[:, :2]):
        torch.testing.assert_close(jepa_targets(compiled, x, at), jepa_targets(encoder, x, at))


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        encoder = make_encoder(gradient_checkpointing=checkpointing)
        encoder(torch.ones(1, 1, 6, 32)).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    torch.testing.assert_close(*gradients)


def test_initialisation_schemes():
    wide = {"embed_dim": 192, "num_heads": 3}
    release = make_encoder(**wide)
    assert release.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert release.patch_embed.proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    fan_in = make_encoder(**wide, init_scheme="fan_in", patch_embed_std=0.3)
    assert fan_in.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(192**-0.5, rel=0.1)
    assert fan_in.blocks[0].mlp.fc2.weight.std().item() == pytest.approx(768**-0.5, rel=0.1)
    assert fan_in.patch_embed.proj.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert fan_in.blocks[0].mlp.fc1.bias.abs().max() == 0
    mask_tokens = torch.stack([make_predictor(release).mask_token for _ in range(100)])
    assert mask_tokens.std().item() == pytest.approx(0.02, rel=0.1)


def test_positions_span_minus_one_to_one_and_carry_gradient():
    encoder = make_encoder()
    roi_code = encoder.pos_embed_proj(encoder.gradient_pos_embed)[0, :, 12:]
    assert roi_code.min() == -1
    assert roi_code.max() == 1
    encoder(torch.randn(1, 1, 6, 32)).sum().backward()
    assert encoder.pos_embed_proj.predictor_pos_embed_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("time_code", ["published", "few_patches"])
def test_time_and_roi_codes_by_hand(time_code):
    """Method 2: D / 4 frequencies, all sines, then all cosines; tokens are ROI-major."""
    rois, patches, dim = 3, 5, 16
    positions = PositionEmbedding((rois, patches), dim, None, "origin", time_code)(None)[0]
    assert positions.shape == (rois * patches, dim)
    for roi in range(rois):
        for patch in range(patches):
            token = positions[roi * patches + patch].tolist()
            omega = [10000.0 ** (-k / (dim / 4)) for k in range(dim // 4)]
            in_time = omega
            if time_code == "few_patches":  # method 10
                in_time = [pi / 2 * 8 ** (-k / (dim / 4)) for k in range(dim // 4)]
            expected = [wave(patch * w) for wave in (sin, cos) for w in in_time]
            expected += [wave(roi * w) for wave in (sin, cos) for w in omega]
            assert token == pytest.approx(expected, abs=1e-6)


def test_positions_are_float32_under_autocast():
    encoder = make_encoder()
    positions, gradients = encoder.pos_embed_proj, encoder.gradient_pos_embed
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = positions(gradients)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, positions(gradients))


def test_mistakes_are_errors():
    with pytest.raises(ValueError, match="attn_mode"):
        make_encoder(attn_mode="flash")
    with pytest.raises(ValueError, match="multiple of the patch size"):
        make_encoder((6, 30), 8)
    with pytest.raises(ValueError, match=r"needs ROI features of shape \(1, 6, G\)"):
        make_encoder(gradient_pos_embed=torch.zeros(1, 5, 4))
    with pytest.raises(ValueError, match="add_w"):
        make_encoder(add_w="gradient")


def test_the_loss_trains_encoder_and_predictor_but_never_the_target_encoder():
    encoder, target_encoder = make_encoder(), make_encoder()
    predictor = make_predictor(encoder)
    x = torch.randn(2, 1, 6, 32)
    masks_enc, masks_pred = torch.tensor([[0, 1, 2]] * 2), torch.tensor([[9, 15]] * 2)
    jepa_loss(encoder, target_encoder, predictor, x, masks_enc, masks_pred).backward()
    assert all(p.grad is None for p in target_encoder.parameters())
    for network in (encoder, predictor):
        assert all(p.grad is not None for p in network.parameters())


def test_targets_are_normalised_over_features_of_the_full_grid():
    encoder = make_encoder().eval()
    with torch.no_grad():  # or the encoder's own last norm would do
        encoder.norm.weight.copy_(torch.linspace(1, 5, 24))
        encoder.norm.bias.copy_(torch.linspace(3, -1, 24))
    x = torch.randn(2, 1, 6, 32)
    targets = jepa_targets(encoder, x)
    assert targets.shape == (2, 24, 24)
    torch.testing.assert_close(targets.mean(-1), torch.zeros(2, 24), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        targets.var(-1, unbiased=False), torch.ones(2, 24), atol=1e-3, rtol=0
    )


def test_the_target_encoder_is_an_exponential_average():
    encoder, target_encoder = make_encoder(), make_encoder()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    before = [p.clone() for p in target_encoder.parameters()]
    update_target_encoder(target_encoder, encoder, 0.9)
    for old, new, source in zip(
        before, target_encoder.parameters(), encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * source)
    frozen = [p.clone() for p in target_encoder.parameters()]
    update_target_encoder(target_encoder, encoder, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(frozen, target_encoder.parameters(), strict=True))


def test_gathering_keeps_the_order_of_the_mask():
    x = torch.arange(12.0).reshape(1, 6, 2)
    assert apply_masks(x, torch.tensor([[4, 0]])).tolist() == [[[8.0, 9.0], [0.0, 1.0]]]
