"""The predictor of a checkpoint, loaded beside its encoder."""

import numpy as np
import pytest
import torch

from src.helper import init_model
from src.pretrained.load import load_pretrained
from src.utils.checkpoint import load_checkpoint, save_checkpoint
from src.utils.errors import UserError
from tests.conftest import tiny_config
from tests.downstream_tasks.conftest import pretraining_run, reference


@pytest.mark.parametrize("name", ["tiny_mapping", "tiny_origin"])
def test_the_predictor_of_a_release_file_gives_the_numbers_of_the_release(name, tmp_path):
    path, arrays, flags = reference(name, tmp_path)
    if name == "tiny_origin":
        del flags["gradient_csv_path"]
    found = load_pretrained(path, which="encoder", with_predictor=True, **flags)
    x, context, targets = (torch.from_numpy(arrays[n]) for n in ("x", "masks_enc", "masks_pred"))
    predicted = found.predictor(found.encoder(x, context), context, targets)
    np.testing.assert_allclose(predicted.numpy(), arrays["predictor_out"], atol=2e-5)
    assert not found.predictor.training
    assert not any(p.requires_grad for p in found.predictor.parameters())


def test_the_predictor_of_a_run_is_the_one_it_ended_with(tmp_path):
    _, run = pretraining_run(tmp_path)
    found = load_pretrained(run, with_predictor=True)
    stored = load_checkpoint(run / "jepa-latest.pth.tar")["predictor"]
    loaded = found.predictor.state_dict()
    assert {name.removeprefix("module.") for name in stored} == set(loaded)
    assert all(torch.equal(v, loaded[n.removeprefix("module.")]) for n, v in stored.items())


def test_untrained_networks_are_those_a_pretraining_begins_with(tmp_path):
    data, run = pretraining_run(tmp_path)
    found = load_pretrained(run, with_predictor=True)
    config = tiny_config(data, run, "meta.seed=5")
    begun = init_model(config, found.gradients, torch.device("cpu"))
    state = torch.get_rng_state()
    for network, ours in zip(
        (begun.encoder, begun.predictor), found.untrained_networks(5), strict=True
    ):
        theirs = network.state_dict()
        assert all(torch.equal(v, theirs[n]) for n, v in ours.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_without_predictor_is_refused_where_one_is_needed(tmp_path):
    _, run = pretraining_run(tmp_path)
    stored = load_checkpoint(run / "jepa-latest.pth.tar")
    del stored["predictor"]
    save_checkpoint(tmp_path / "without.pth.tar", stored)
    assert load_pretrained(tmp_path / "without.pth.tar").predictor is None
    with pytest.raises(UserError, match=r"without.pth.tar \(pretraining\) holds no predictor"):
        load_pretrained(tmp_path / "without.pth.tar", with_predictor=True)
    path, _, flags = reference("tiny_finetuned", tmp_path)
    with pytest.raises(UserError, match=r"fine tuned release\) holds no predictor.*jepa-latest"):
        load_pretrained(path, with_predictor=True, **flags)
