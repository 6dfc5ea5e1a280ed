"""Configs: every mistake gets one sentence that names the culprit."""

from pathlib import Path

import pytest

from experiment.config import Config, load_config
from experiment.errors import UserError

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/**/*.toml"))
CONFIGS = [path for path in CONFIGS if path.parent.name != "suites"]
DIGITS = Path(__file__).parents[2] / "configs/digits/real_nvp.toml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_shipped_config_is_valid_and_survives_a_round_trip(path):
    config = load_config(path)
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_overrides_are_parsed_as_toml_and_checked():
    config = load_config(
        DIGITS, ["train.steps=7", "model.hidden=[32, 16]", "train.schedule=constant", "model.layers = 2"]
    )
    assert config.train.steps == 7
    assert config.model.hidden == (32, 16)
    assert config.train.schedule == "constant"
    assert config.model.layers == 2


def test_the_digest_changes_with_any_setting():
    assert load_config(DIGITS).digest == load_config(DIGITS).digest
    assert load_config(DIGITS).digest != load_config(DIGITS, ["seed=1"]).digest
    assert load_config(DIGITS).digest != load_config(DIGITS, ["evaluate.draws=1"]).digest


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.stepz=5", "unknown key 'train.stepz'; did you mean 'steps'?"),
        ("model.layerz=5", "unknown key 'model.layerz'; did you mean 'layers'?"),
        ("trian.steps=5", "unknown key 'trian'; did you mean 'train'?"),
        ("model.sde.kind=vp", "unknown key 'model.sde'"),
        ("train.steps=many", "'train.steps' is 'many'"),
        ("train.steps=0", "'train.steps' is 0, but input should be greater than or equal to 1"),
        ("model.dropout=1.5", "'model.dropout' is 1.5, but input should be less than 1"),
        ("preprocessing.alpha=0.7", "'preprocessing.alpha' is 0.7"),
        ("train.learning_rate=nan", "'train.learning_rate' is nan"),
        ("model.kind=glowworm", "'model.kind' is 'glowworm'; it must be one of"),
        ("model.hidden=[]", "'model.hidden'"),
        ("train.steps", "--set takes key=value"),
        ("seed.deep.er=1", "'seed' is a value, not a table"),
    ],
)
def test_a_wrong_override_is_refused_with_a_sentence(override, sentence):
    with pytest.raises(UserError) as error:
        load_config(DIGITS, [override])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_nested_union_is_named_without_its_tag(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[data]\nkind="digits"\n[model]\nkind="score_sde"\n[model.sde]\nkind="ve"\nsigma_maxx=3.0\n')
    with pytest.raises(UserError, match=r"unknown key 'model\.sde\.sigma_maxx'; did you mean 'sigma_max'\?"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[data\n", "cannot be read as TOML"),
        ('[model]\nkind="nice"\n', "'data' is missing"),
        (
            '[data]\nname="moons"\n[model]\nkind="nice"\n',
            "'data.kind' is missing; it is one of 'digits', 'toy', 'mnist', 'fashion_mnist', 'cifar10_lossless_4k', "
            "'cifar10', 'bsds300_patches', 'photographs', 'power', 'gas', 'hepmass', 'miniboone', 'bsds300', "
            "'uci_small', 'table', 'image_folder'.",
        ),
        ('[data]\nkind="toy"\nname="moon"\n[model]\nkind="nice"\n', "'data.name' is 'moon'"),
    ],
)
def test_a_malformed_file_is_refused_with_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert sentence in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.toml does not exist"):
        load_config(tmp_path / "nowhere.toml")
