"""Configuration: the release's keys, overrides, and one clear line for every mistake."""

import re
from pathlib import Path

import pytest
import yaml

from src.config import Config, config_from_dict, load_config
from src.masks.forecast import ForecastMasks
from src.masks.multiblock import MultiblockMasks
from src.masks.roi import RoiMasks
from src.masks.spatiotemporal import SpatiotemporalMasks
from src.utils.errors import UserError
from src.utils.yaml_config import key_names

CONFIG_FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(CONFIG_FOLDER.glob("*.yaml"))
PUBLISHED = CONFIG_FOLDER / "ukb_vitb_ep300.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_load_and_every_line_is_commented(path):
    load_config(path)
    for line in path.read_text().splitlines():
        assert "#" in line or re.fullmatch(r"\w+:|    - .+", line), line


def test_mask_defaults_are_those_of_the_modes():
    for mode, expected in {
        "spatiotemporal": [SpatiotemporalMasks(450, 10)],
        "multiblock": [MultiblockMasks(450, 10)],
        "roi": [RoiMasks(450, 10)],
        "forecast": [ForecastMasks(450, 10)],
        "mixed": [RoiMasks(450, 10), ForecastMasks(450, 10)],
    }.items():
        values = {"data": {"crop_size": [450, 160]}, "meta": {"mask_mode": mode}}
        assert config_from_dict(values, "empty.yaml").make_mask_modes() == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["mask.allow_overlap=true", "mask.min_keep=7"],
            [SpatiotemporalMasks(450, 10, min_keep=7, allow_overlap=True)],
        ),
        (
            [
                *("meta.mask_mode=roi", "mask.roi_visible_scale=[0.2, 0.3]"),
                *("mask.roi_target_scale=[0.1, 0.5]", "mask.min_keep=9"),
            ],
            [RoiMasks(450, 10, (0.2, 0.3), (0.1, 0.5), min_keep=9)],
        ),
        (
            [
                *("meta.mask_mode=multiblock", "mask.multiblock_context_scale=[0.8, 0.9]"),
                *("mask.multiblock_target_scale=[0.1, 0.2]", "mask.multiblock_targets=3"),
                *("mask.multiblock_aspect_ratio=[0.5, 2]", "mask.allow_overlap=true"),
            ],
            [
                MultiblockMasks(450, 10, (0.8, 0.9), (0.1, 0.2), (0.5, 2.0), 3, allow_overlap=True),
            ],
        ),
        (
            [
                *("meta.mask_mode=mixed", "mask.mixed_modes=[forecast, spatiotemporal, forecast]"),
                *("mask.forecast_roi_scale=[0.2, 0.3]", "mask.forecast_patches=2"),
            ],
            [
                ForecastMasks(450, 10, (0.2, 0.3), 2),
                SpatiotemporalMasks(450, 10),
                ForecastMasks(450, 10, (0.2, 0.3), 2),
            ],
        ),
    ],
)
def test_mask_keys_reach_the_mode(overrides, expected):
    assert load_config(PUBLISHED, overrides).make_mask_modes() == expected


def test_mask_keys_of_a_mode_that_is_not_used_are_not_asked(caplog):
    overrides = ["mask.forecast_patches=99", "mask.roi_visible_scale=[0.9, 0.9]"]
    load_config(PUBLISHED, overrides)
    load_config(PUBLISHED, ["meta.mask_mode=roi", "mask.enc_mask_scale=[1.0, 0.5]"])
    assert not caplog.messages
    with pytest.raises(UserError, match=r"mask\.forecast_patches is 99"):
        load_config(PUBLISHED, ["meta.mask_mode=mixed", overrides[0]])


def test_the_published_configs_show_only_their_differences():
    for size in "sbl":
        values = yaml.safe_load((CONFIG_FOLDER / f"ukb_vit{size}_ep300.yaml").read_text())
        assert values.pop("base") == "ukb_ep300.yaml"
        assert set(values) == {"logging", "meta"}
        assert set(values["logging"]) == {"folder"}
        assert set(values["meta"]) <= {"model_name", "pred_depth", "pred_emb_dim"}


def test_the_shared_part_of_the_published_configs_explains_every_key():
    values = yaml.safe_load((CONFIG_FOLDER / "ukb_ep300.yaml").read_text())
    given = [f"{section}.{key}" for section, keys in values.items() for key in keys]
    assert set(given) == set(key_names(Config))


@pytest.mark.parametrize(
    ("size", "encoder", "predictor"),
    [
        ("s", (384, 12, 6), (6, 192)),
        ("b", (768, 12, 12), (6, 384)),
        ("l", (1024, 24, 16), (12, 384)),
    ],
)
def test_the_published_sizes(size, encoder, predictor):
    """Method 3."""
    config = load_config(CONFIG_FOLDER / f"ukb_vit{size}_ep300.yaml")
    assert tuple(config.encoder_size.values()) == encoder
    assert (config.meta.pred_depth, config.meta.pred_emb_dim) == predictor
    assert config.logging.folder == f"logs/ukb_vit{size}_ep300"


def test_the_published_settings_are_those_of_the_paper():
    config = load_config(PUBLISHED)
    assert config.encoder_size == {"embed_dim": 768, "depth": 12, "num_heads": 12}
    assert config.data.batch_size * 4 * config.meta.accumulation_steps == 512
    assert config.optimization.ema == (0.996, 1.0)


def test_overrides_win_over_the_file():
    config = load_config(PUBLISHED, ["optimization.lr=2e-4", "data.crop_size=[122, 32]"])
    assert config.optimization.lr == 2e-4
    assert config.data.crop_size == (122, 32)


def test_what_is_written_is_what_is_read():
    config = load_config(PUBLISHED, ["meta.seed=3"])
    again = config_from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())), "again")
    assert again == config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("meta.model_nam=x", ["unknown key 'meta.model_nam'", "Did you mean 'meta.model_name'?"]),
        ("met.seed=1", ["unknown section 'met'", "Did you mean 'meta'?"]),
        ("meta.model_name=vit_bse", ["meta.model_name", "vit_bse", "Did you mean 'vit_base'?"]),
        ("meta.init=fanin", ["meta.init", "'fanin'", "release, fan_in"]),
        (
            "meta.attention_bias=gradient meta.add_w=origin",
            ["meta.attention_bias", "add_w: origin, which has no gradients", "add_w: mapping"],
        ),
        ("meta.bias_components=6", ["meta.bias_components is 6", "attention_bias is gradient"]),
        ("meta.bias_scales=[1,2]", ["meta.bias_scales is", "attention_bias is gradient"]),
        ("data.batch_size=many", ["data.batch_size", "'many'", "whole number"]),
        ("data.batch_size=0", ["data.batch_size", "0", ">= 1"]),
        ("data.pin_mem=1", ["data.pin_mem", "true or false"]),
        ("data.crop_size=[450, 161]", ["data.crop_size", "[450, 161]", "multiple of", "16"]),
        (
            "data.crop_size=450",
            ["data.crop_size", "450", "[a whole number >= 1, a whole number >= 1]"],
        ),
        (
            "mask.enc_mask_scale=[1.0, 0.5]",
            ["mask.enc_mask_scale", "[1.0, 0.5]", "0 <= min <= max <= 1"],
        ),
        (
            "mask.pred_mask_T_scale=[0, 1.4]",
            ["mask.pred_mask_T_scale", "1.4", "0 <= min <= max <= 1"],
        ),
        ("meta.mask_mode=forcast", ["meta.mask_mode is 'forcast'", "Did you mean 'forecast'?"]),
        ("meta.mask_mode=mixed mask.mixed_modes=[]", ["mask.mixed_modes is []", "not empty"]),
        ("mask.mixed_modes=[roi, mixed]", ["mask.mixed_modes is ['roi', 'mixed']", "one of"]),
        (
            "meta.mask_mode=roi mask.roi_visible_scale=[0.8, 0.8]",
            ["mask.roi_visible_scale", "360 visible and 112 target ROIs are more than the 450"],
        ),
        (
            "meta.mask_mode=forecast mask.forecast_patches=10",
            ["mask.forecast_patches is 10", "between 1 and 9"],
        ),
        ("optimization.lr=fast", ["optimization.lr", "'fast'", "a finite number"]),
        ("optimization.ema=[1.0, 0.9]", ["optimization.ema", "[1.0, 0.9]"]),
        ("optimization.warmup=301", ["optimization.warmup", "301", "300"]),
        ("meta.embed_dim=100", ["meta.embed_dim", "12 heads"]),
        ("data.stride=2 data.target_tr=2.0", ["data.target_tr", "not both"]),
        ("lr=1", ["unknown key 'lr'", "Did you mean 'optimization.lr'?"]),
        ("meta.epochs=3", ["'meta.epochs'", "Did you mean 'optimization.epochs'?"]),
        ("data.seeed=3", ["'data.seeed'. Valid here"]),  # what is alike has another section
        ("logging.monitor_clips=1", ["logging.monitor_clips is 1", "a whole number >= 2"]),
        ("logging.monitor_every=15", ["logging.monitor_every is 15", "logging.log_every (10)"]),
        ("logging.write_tag=a/b", ["logging.write_tag is 'a/b'", "a part of a file name"]),
        ("data.target_tr=0", ["data.target_tr is 0", "a finite number > 0 or null"]),
        ("meta.seed=-1", ["meta.seed is -1", ">= 0"]),
        ("optimization.ipe_scale=0.5", ["optimization.ipe_scale is 0.5", ">= 1"]),
        ("optimization.ema=[0.9, 1.1]", ["[0.9, 1.1]", "from 0 to 1"]),
    ],
)
def test_a_mistake_is_one_clear_line(override, parts):
    with pytest.raises(UserError) as error:
        load_config(PUBLISHED, _split(override))
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def _split(overrides: str) -> list[str]:
    """Several overrides on one line; a list's own spaces do not count."""
    words: list[str] = []
    for word in overrides.split(" "):
        if "=" in word:
            words.append(word)
        else:
            words[-1] += f" {word}"
    return words


def test_a_mistake_is_sought_where_it_may_be(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{}\n")
    with pytest.raises(UserError, match=r"mine\.yaml and the command line: data\.batch_size is 0"):
        load_config(path, ["data.batch_size=0"])
    path.write_text("data: {batch_size: 0}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: data\.batch_size is 0"):
        load_config(path)


def test_missing_and_malformed_files(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("data: [\n")
    with pytest.raises(UserError, match=r"Did you mean 'quickstart\.yaml'"):
        load_config(tmp_path / "quikstart.yaml")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "quickstart.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(UserError, match="is empty; sections of keys"):
        load_config(tmp_path / "empty.yaml")
