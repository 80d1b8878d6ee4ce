"""Value maps that differ between ROIs, against attention written out token by token."""

import pytest
import torch

from src.models.layers import apply_masks
from tests.models.test_attention_bias import (
    ALSO_HIDDEN,
    ALSO_SEEN,
    HIDDEN,
    PATCHES,
    ROIS,
    SEEN,
    inputs,
    make_encoder,
    make_encoder_without,
    make_predictor,
)

RANK = 3


def make(attn_mode="sdpa", **settings):
    encoder = make_encoder(attn_mode=attn_mode, roi_value_rank=RANK, **settings)
    return awake(encoder, encoder.blocks)


def awake(network, blocks):
    """Not at its start, where it adds nothing."""
    for block in blocks:
        torch.nn.init.normal_(block.attn.roi_values.up.weight, std=0.3)
    return network


def by_hand(blocks, maps, x, tokens):
    """Blocks with the attention ``maps`` of each, a value matrix for each ROI."""
    for block, attention in zip(blocks, maps, strict=True):
        normed, extra = block.norm1(x), block.attn.roi_values
        width = x.shape[-1]
        weight, offset = block.attn.qkv.weight[-width:], block.attn.qkv.bias[-width:]
        values = torch.empty_like(normed)
        for i, sample in enumerate(tokens.tolist()):
            for j, token in enumerate(sample):
                particular = extra.up.weight @ torch.diag(extra.of_roi[token // PATCHES])
                matrix = weight + particular @ extra.down.weight
                values[i, j] = matrix @ normed[i, j] + offset
        heads = values.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)
        x = x + block.attn.proj((attention @ heads).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return x


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa"])
@pytest.mark.parametrize("masks", [None, SEEN])
def test_each_roi_has_values_of_its_own(attn_mode, masks):
    encoder, x = make(attn_mode), inputs()
    out, maps = encoder(x, masks, return_attention=True)
    tokens = torch.arange(ROIS * PATCHES).expand(2, -1) if masks is None else masks
    expected = encoder.norm(by_hand(encoder.blocks, maps, encoder.embed(x, masks), tokens))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(x, masks), expected, rtol=1e-4, atol=1e-5)


def test_lists_of_masks_and_the_predictor():
    encoder, x = make(), inputs()
    both = encoder(x, [SEEN, ALSO_SEEN])
    torch.testing.assert_close(both, torch.cat([encoder(x, SEEN), encoder(x, ALSO_SEEN)]))
    predictor = make_predictor(encoder, roi_value_rank=RANK)
    awake(predictor, predictor.predictor_blocks)
    out = predictor(both, [SEEN, ALSO_SEEN], [HIDDEN, ALSO_HIDDEN])
    parts = [
        predictor(context, seen, hidden)
        for hidden in (HIDDEN, ALSO_HIDDEN)
        for context, seen in zip(both.chunk(2), (SEEN, ALSO_SEEN), strict=True)
    ]
    torch.testing.assert_close(out, torch.cat(parts))
    swapped = predictor(both[:2], SEEN.flip(1), HIDDEN)
    assert (swapped - parts[0]).abs().max() > 1e-3  # it is told which ROI a token is of


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa"])
def test_the_last_block_at_some_tokens(attn_mode):
    encoder, x = make(attn_mode), inputs()
    full = encoder(x)
    for at in (HIDDEN, [HIDDEN, ALSO_HIDDEN]):
        torch.testing.assert_close(encoder(x, read_at=at), apply_masks(full, at))


def test_all_of_it_is_trained_also_with_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        encoder = make(gradient_checkpointing=checkpointing)
        encoder(inputs(), SEEN).square().sum().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if "roi_values" in n})
    assert len(gradients[0]) == 3 * len(encoder.blocks)
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradients[1][name], gradient)
    unseen = sorted(set(range(ROIS)) - set((SEEN // PATCHES).flatten().tolist()))
    for name, gradient in gradients[0].items():
        if name.endswith("of_roi"):
            assert gradient[unseen].abs().sum() == 0


def test_a_network_begins_as_without():
    """The same weights, and nothing added."""
    plain, x = make_encoder_without(), inputs()
    begun = make_encoder_without(roi_value_rank=RANK)
    for name, value in plain.state_dict().items():
        assert torch.equal(begun.state_dict()[name], value), name
    torch.testing.assert_close(begun(x), plain(x))
