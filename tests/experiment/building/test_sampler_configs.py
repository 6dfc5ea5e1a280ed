"""Every sampler from a config, with its own defaults, and the configs from before there was a choice."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from cflows import CosineVPSDE
from cflows.samplers.sampler import Sampler
from experiment.building.builder import build
from experiment.building.samplers import build_sampler
from experiment.config import load_config, parse_config, with_sampler
from experiment.errors import UserError
from experiment.sections.samplers import AnySampler, EulerMaruyamaSampler
from experiment.sections.samplers import EDMHeunSampler as EDMHeunSection

ROOT = Path(__file__).parents[3]
SECTIONS = get_args(AnySampler)
OTHER = {  # a value other than the default, and one that is legal
    "steps": 7,
    "t_min": 0.02,
    "spacing": "quadratic",
    "denoise": None,
    "variance": "transition",
    "rtol": 0.3,
    "atol": 0.2,
    "max_levels": 9,
    "predictor": {"kind": "ancestral", "steps": 5, "variance": "transition"},
    "snr": 0.3,
    "corrector_steps": 2,
    "norms": "batch",
    "method": "rk4",
    "order": 1,
    "variant": "sde",
    "churn": 3.0,
    "s_min": 0.1,
    "s_max": 9.0,
    "s_noise": 1.01,
}


def config(model: dict[str, Any]) -> Any:
    table = {"data": {"kind": "toy", "name": "moons"}, "model": {"kind": "score_sde", "hidden": [8], **model}}
    return parse_config(table, source="test")


def built(model: dict[str, Any]) -> Any:
    return build(config(model), (2,)).model


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.model_fields["kind"].default)
def test_a_section_and_its_sampler_have_the_same_settings_and_defaults(section: Any) -> None:
    """So that a setting of the library is one of the config, and none that is written is lost."""
    sampler = build_sampler(section())
    assert sampler == type(sampler)()
    assert {f.name for f in fields(sampler)} == section.model_fields.keys() - {"kind"}
    for name, field in section.model_fields.items():
        if name == "kind":
            continue
        value = not field.default if name == "denoise" else OTHER[name]
        changed = getattr(build_sampler(section(**{name: value})), name)
        assert changed != getattr(sampler, name)
        if name != "predictor":
            assert changed == value
        else:
            assert (type(changed).__name__, changed.steps, changed.variance) == ("AncestralSampling", 5, "transition")


@pytest.mark.parametrize(("section", "sde"), list(zip(SECTIONS, 3 * ["vp", "cosine_vp", "sub_vp", "ve"], strict=False)))
def test_every_sampler_draws_by_its_config(section: Any, sde: str) -> None:
    """Untrained, a score model is that of normal data, however it is sampled: moments within 5 standard errors."""
    kind = section.model_fields["kind"].default
    steps = {"steps": 50} if "steps" in section.model_fields else {}
    steps = {"predictor": {"steps": 50}} if kind == "predictor_corrector" else steps
    model = built({"sde": {"kind": sde}, "sampler": {"kind": kind, **steps}})
    assert isinstance(model.sampler, Sampler)
    x = model.sample((500,), generator=torch.Generator().manual_seed(0))
    assert x.mean(0).abs().max() < 5 / 500**0.5
    assert (x.var(0) - 1).abs().max() < 5 * (2 / 500) ** 0.5


def test_a_table_without_a_kind_is_the_first_sampler_there_was() -> None:
    old = {"steps": 7, "t_min": 0.01, "denoise": False}
    assert config({"sampler": old}).model.sampler == EulerMaruyamaSampler(**old)
    assert config({}).model.sampler == EulerMaruyamaSampler()
    predictor = config({"sampler": {"kind": "predictor_corrector", "predictor": {"steps": 7}}}).model.sampler.predictor
    assert (predictor.kind, predictor.steps) == ("reverse_diffusion", 7)


def test_the_cosine_process_has_its_settings() -> None:
    assert built({"sde": {"kind": "cosine_vp"}}).sde == CosineVPSDE()
    assert built({"sde": {"kind": "cosine_vp", "offset": 0.01, "scale_min": 0.1}}).sde == CosineVPSDE(
        offset=0.01, scale_min=0.1
    )


@pytest.mark.parametrize(
    ("sampler", "sentence"),
    [
        (
            {"kind": "euler"},
            r"^test: 'model\.sampler\.kind' is 'euler'; it must be one of 'euler_maruyama', 'reverse_d",
        ),
        ({"kind": "dpm_solver", "snr": 0.1}, r"^test: unknown key 'model\.sampler\.snr'; known: denoise, kind, order"),
        ({"stepz": 3}, r"^test: unknown key 'model\.sampler\.stepz'; did you mean 'steps'\?$"),
        ({"kind": "dpm_solver", "order": 4}, r"^test: 'model\.sampler\.order' is 4, but input should be less than or"),
        (
            {"kind": "predictor_corrector", "predictor": {"kind": "dpm_solver"}},
            r"^test: 'model\.sampler\.predictor\.kind' is 'dpm_solver'; it must be one of 'euler_maruyama'",
        ),
    ],
)
def test_a_wrong_sampler_is_refused_with_a_sentence(sampler: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config({"sampler": sampler})


@pytest.mark.parametrize(
    "sampler",
    [
        {"kind": "dpm_solver", "order": 3, "variant": "sde"},
        {"kind": "edm_heun", "steps": 1},
        {"kind": "edm_heun", "s_min": 3.0, "s_max": 1.0},
        {"kind": "euler_maruyama", "spacing": "log_snr", "t_min": 0.0},
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_a_sentence(sampler: Any) -> None:
    with pytest.raises(UserError, match=r"^model\.kind=score_sde: [^\n]*\.$"):
        built({"sampler": sampler})


def test_overrides_change_the_sampler_and_nothing_else() -> None:
    before = config({"sampler": {"steps": 7}})
    same = with_sampler(before, ["sampler.t_min=0.1"]).model.sampler
    assert (same.kind, same.steps, same.t_min) == ("euler_maruyama", 7, 0.1)
    after = with_sampler(before, ["sampler.kind=edm_heun", "sampler.s_max=3.0"])
    assert after.model.sampler == EDMHeunSection(s_max=3.0)
    assert after.model_copy(update={"model": before.model}) == before
    nested = with_sampler(before, ["sampler.kind=predictor_corrector", "sampler.predictor.steps=9"])
    assert with_sampler(nested, ["sampler.predictor.denoise=false"]).model.sampler.predictor.steps == 9
    assert with_sampler(before, []) is before


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            "train.steps=3",
            r"^--set changes the sampler here, as sampler\.steps=50 does, but was given 'train\.steps=3'",
        ),
        ("sampler.order=3", r"^--set sampler\.order=3: unknown key 'model\.sampler\.order'"),
        ("sampler.steps=many", r"^--set sampler\.steps=many: 'model\.sampler\.steps' is 'many'"),
        ("sampler.steps", r"^--set takes key=value"),
    ],
)
def test_a_wrong_override_is_refused_with_a_sentence(setting: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        with_sampler(config({}), [setting])


def test_a_model_without_a_sampler_has_none_to_change() -> None:
    flow = load_config(ROOT / "configs/digits/real_nvp.toml")
    with pytest.raises(UserError, match=r"unknown key 'model\.sampler'"):
        with_sampler(flow, ["sampler.steps=3"])
