"""What an import brings along: seconds of waiting for what is not needed yet."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("train", "compare", "evaluate", "sample")


def loaded(code: str) -> set[str]:
    """The modules that a new interpreter has after the code, by their first names."""
    told = (
        f"import sys\n{code}\nprint('modules:', *{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stderr.rpartition("modules:")[2].split())


@pytest.mark.parametrize("package", ["core", "discrete", "cflows"])
def test_a_library_brings_torch_and_no_scipy(package: str) -> None:
    """Scipy, which torchdiffeq imports, takes half as long as torch: it comes with the first solve."""
    found = loaded(f"import {package}")
    assert {"torch", package} <= found
    assert not {"scipy", "torchdiffeq", "sklearn", "matplotlib", "pandas"} & found


def test_training_brings_neither_statistics_nor_plots() -> None:
    """Scikit-learn takes as long as torch: it comes with the first digits or mixture, matplotlib with a figure."""
    found = loaded("import experiment.training.engine")
    assert "torch" in found
    assert not {"scipy", "sklearn", "matplotlib", "pandas"} & found


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_torch(script: str) -> None:
    code = f"""
import runpy
sys.argv = ["{script}.py", "--help"]
try:
    runpy.run_path("{script}.py", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
"""
    found = loaded(code)
    assert {"argparse", "experiment"} <= found
    assert not {"torch", "numpy"} & found


def test_public_names_of_experiment_come_at_their_first_use() -> None:
    found = loaded(
        "import experiment\nassert set(experiment.__all__) == set(experiment._PLACES) <= set(dir(experiment))"
    )
    assert not {"torch", "numpy"} & found
    assert "torch" in loaded(
        "import experiment\nfor name in experiment.__all__: assert callable(getattr(experiment, name))"
    )
    with pytest.raises(subprocess.CalledProcessError):
        loaded("from experiment import nothing")
