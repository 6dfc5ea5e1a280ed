"""Images as (channels, height, width) go through training, evaluation, sampling and comparison as vectors do."""

import numpy as np
import torch

from experiment import compare, evaluate, train
from experiment.config import parse_config
from experiment.draws.sampling import draw_interpolations, draw_samples

SCORE = {
    "kind": "score_sde",
    "hidden": [8],
    "divergence": {"kind": "hutchinson", "probes": 2},
    "solver": {"method": "rk4", "steps": 2},
    "sampler": {"steps": 3},
}
GLOW = {"kind": "glow", "levels": 2, "depth": 1, "hidden": [8]}


def digits_run(folder, layout, *, model=SCORE):
    table = {
        "data": {"kind": "digits", "layout": layout},
        "preprocessing": {"kind": "scale", "standardize": False},
        "model": model,
        "train": {"steps": 3, "batch_size": 64},
        "evaluate": {"draws": 1},
    }
    return train(parse_config(table, source="test"), folder / f"{model['kind']}-{layout}", device="cpu")


def test_layouts_train_and_compare_on_equal_terms(tmp_path):
    """The same network on the same noise: vectors and images differ in nothing but their shape."""
    runs = [digits_run(tmp_path, layout) for layout in ("flat", "image")]
    assert [run.environment["event_shape"] for run in runs] == [[64], [1, 8, 8]]
    flat, image = (evaluate(run.path) for run in runs)
    assert flat.data_fingerprint == image.data_fingerprint
    assert flat.dimensions == image.dimensions == 64
    np.testing.assert_allclose(flat.log_prob_nats, image.log_prob_nats, rtol=1e-4)
    comparison = compare([run.path for run in runs], tmp_path / "out", with_baselines=False)
    assert (tmp_path / "out" / "samples.png").is_file()
    assert abs(comparison.differences[0].difference_nats) < 1e-2
    (vectors, _), (images, picture) = (draw_samples(run.path, count=3, seed=1) for run in runs)
    assert np.load(images).shape == (3, 1, 8, 8)
    np.testing.assert_array_equal(np.load(images).reshape(3, 64), np.load(vectors))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ways_between_integers_depend_on_the_seed_alone(tmp_path):
    """The dequantization of both ends as well; the ends come back whole."""
    run = digits_run(tmp_path, "image", model=GLOW)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(drawn))
        path, picture = draw_interpolations(run.path, count=2, steps=5, seed=seed, threads=1)
        drawn.append(np.load(path))
    assert drawn[0].shape == (2, 5, 1, 8, 8)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    test = run.load_data().test.numpy()
    for end in drawn[0][:, [0, -1]].reshape(-1, 1, 8, 8):
        assert (test == end).all((1, 2, 3)).any()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_image_flow_and_vectors_compare_on_the_same_rows(tmp_path):
    runs = [digits_run(tmp_path, "image", model=GLOW), digits_run(tmp_path, "flat")]
    comparison = compare([run.path for run in runs], tmp_path / "out", with_baselines=False)
    assert {summary.model for summary in comparison.summaries} == {"glow", "score_sde"}
    assert len({summary.data_fingerprint for summary in comparison.summaries}) == 1
    drawn, picture = draw_samples(runs[0].path, count=3)
    assert np.load(drawn).shape == (3, 1, 8, 8)
    assert picture.read_bytes().startswith(b"\x89PNG")
