"""Nothing public goes untested: each abstract class and each function knows where its cases are."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import cases
import pytest
import torch
from torch import nn

import cflows
import core
import discrete
from cflows import FFJORD, SDE, FlowMatching, ScoreSDE
from cflows.objectives.weightings import Weighting
from cflows.samplers.sampler import Sampler
from core import DensityModel, GenerativeModel
from core.divergence import Divergence
from discrete import Bijection

PACKAGES = (core, discrete, cflows)
TESTS = Path(__file__).parent


def modules() -> Iterator[ModuleType]:
    for package in PACKAGES:
        yield package
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield importlib.import_module(info.name)


def classes() -> list[type]:
    """Every class that the packages define, by name."""
    found = {member for module in modules() for _, member in inspect.getmembers(module, inspect.isclass)}
    own = (c for c in found if c.__module__.partition(".")[0] in {p.__name__ for p in PACKAGES})
    return sorted(own, key=lambda c: (c.__qualname__, c.__module__))


PUBLIC = {(package.__name__, name): getattr(package, name) for package in PACKAGES for name in package.__all__}
ABSTRACT = {
    Bijection: {**{n: c.make() for n, c in cases.BIJECTIONS.items()}, **{n: b() for n, b in cases.SURJECTIONS.items()}},
    DensityModel: {
        name: case.make() for name, case in {**cases.DENSITIES, **cases.MASSES, **cases.VAES, **cases.SPINS}.items()
    },
    GenerativeModel: {name: case.make() for name, case in cases.SCORE_MODELS.items()},
    SDE: {name: sde for name, (sde, _) in cases.SDES.items()},
    Sampler: cases.SAMPLERS,
    Divergence: cases.DIVERGENCES,
    Weighting: cases.WEIGHTINGS,
}


def families() -> Iterator[tuple[type, type]]:
    for cls in classes():
        # A density is a generative model too: it has its case among the densities, which come first.
        family = next((f for f in ABSTRACT if issubclass(cls, f) and not inspect.isabstract(cls)), None)
        if family is not None:
            yield family, cls


def returns_a_model(function: object) -> bool:
    found = get_type_hints(function).get("return") if inspect.isfunction(function) else None
    return isinstance(found, type) and issubclass(found, DensityModel)


MODEL_FUNCTIONS = [name for (_, name), value in PUBLIC.items() if returns_a_model(value)]
FUNCTIONS = [name for (_, name), value in PUBLIC.items() if inspect.isfunction(value) and name not in MODEL_FUNCTIONS]
OBJECTIVES = [
    cls
    for cls in classes()
    if cls.__module__.startswith("cflows.objectives")
    and issubclass(cls, nn.Module)
    and not issubclass(cls, Weighting)  # a weighting is a part of one, with cases of its own
]


def test_packages_are_walked() -> None:
    """The walk itself finds what is known to be there."""
    names = {cls.__name__ for cls in classes()}
    assert {"Scaling", "AffineTransformer", "StandardNormal", "VESDE", "EulerMaruyama", "ScoreSDE"} <= names
    assert set(MODEL_FUNCTIONS) >= {"NICE", "RealNVP"}
    assert set(FUNCTIONS) >= {"bits_per_dim", "ode_log_prob", "probability_flow_log_prob"}


@pytest.mark.parametrize(
    ("family", "cls"), [pytest.param(f, c, id=f"{f.__name__}-{c.__name__}") for f, c in families()]
)
def test_every_concrete_class_has_a_case(family: type, cls: type) -> None:
    """The case is of the class itself, not one in which it is hidden."""
    assert any(type(case) is cls for case in ABSTRACT[family].values()), f"no case in cases.py builds a {cls.__name__}"


@pytest.mark.parametrize("name", MODEL_FUNCTIONS)
def test_every_model_function_has_a_case(name: str) -> None:
    builds = [case.build for case in cases.DENSITIES.values()]
    assert any(getattr(build, "func", None) is PUBLIC["discrete", name] for build in builds), f"no case builds {name}"


@pytest.mark.parametrize("cls", OBJECTIVES)
def test_every_objective_has_a_case(cls: type) -> None:
    families = cases.OBJECTIVES, cases.SCORE_OBJECTIVES, cases.LADDER_OBJECTIVES, cases.FLOW_OBJECTIVES
    builds = [build for family in families for build in family.values()]
    built = [getattr(build, "func", build) for build in builds]
    assert cls in built, f"no case among the objectives of cases.py is a {cls.__name__}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_is_called_by_a_test(name: str) -> None:
    assert name in called(), f"no test calls {name}"


@cache
def called() -> set[str]:
    """Names that the test files call."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("test_*.py"))
    calls = (node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {function.id for function in calls if isinstance(function, ast.Name)}


@pytest.mark.parametrize("cls", classes(), ids=lambda c: c.__qualname__)
def test_classes_are_abstract_or_final(cls: type) -> None:
    subclasses = [c for c in classes() if c is not cls and issubclass(c, cls)]
    if inspect.isabstract(cls):
        assert subclasses, f"{cls.__name__} is abstract and nothing implements it"
        with pytest.raises(TypeError, match="abstract"):
            cls()
    else:
        assert not subclasses, f"{cls.__name__} is concrete, but {subclasses} inherit from it"


@pytest.mark.parametrize("cls", classes(), ids=lambda c: c.__qualname__)
def test_no_implemented_method_is_overridden(cls: type) -> None:
    """Down the tree a method is abstract until it is implemented, once."""
    parents = [base for base in cls.__mro__[1:] if base in classes()]
    for name, member in vars(cls).items():
        if inspect.isfunction(member) and not name.startswith("__"):
            for parent in parents:
                inherited = vars(parent).get(name)
                assert inherited is None or getattr(inherited, "__isabstractmethod__", False), (
                    f"{cls.__name__}.{name} overrides {parent.__name__}.{name}"
                )


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_are_sorted_once(package: ModuleType) -> None:
    assert len(set(package.__all__)) == len(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)


@pytest.mark.parametrize("key", PUBLIC, ids=lambda key: ".".join(key))
def test_public_things_say_what_they_are(key: tuple[str, str]) -> None:
    assert inspect.getdoc(PUBLIC[key]), f"{key} has no docstring"


def test_tests_named_in_docstrings_exist() -> None:
    """'Checked by tests/...' points at a file, and at a function of it where one is named."""
    for package in PACKAGES:
        for path in Path(package.__file__).parent.rglob("*.py"):
            for word in path.read_text(encoding="utf-8").split():
                if word.startswith("tests/"):
                    file, _, function = word.rstrip(".,)").partition("::")
                    assert (TESTS.parent / file).is_file(), f"{path.name} names {file}"
                    text = (TESTS.parent / file).read_text(encoding="utf-8")
                    assert f"def {function}" in text, f"{path.name} names {word}"


MODELS = [
    discrete.NICE, discrete.RealNVP, discrete.WaveNet, ScoreSDE, FFJORD, FlowMatching, core.StandardNormal,
]  # fmt: skip


@pytest.mark.parametrize("build", MODELS)
def test_models_are_built_from_their_event_shape_alone(build: type) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        by_int, by_tuple = build(4), build((4,))
    assert by_int.event_shape == by_tuple.event_shape == torch.Size((4,))
    assert isinstance(by_int, DensityModel)


def test_torch_stays_unpatched() -> None:
    """Importing the packages changes no default of torch.distributions."""
    assert torch.distributions.Distribution._validate_args is __debug__
    with pytest.raises(ValueError, match="parameter scale"):
        torch.distributions.Normal(0.0, -1.0)
