"""Draws from runs: their randomness, labels, guidance, parts drawn anew, ways and memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cflows.guidance import ConditionalScore, classifier_free
from cflows.samplers.dpm_solver import DPMSolver
from experiment import load_run, train
from experiment.config import parse_config
from experiment.data import digits, one_hot
from experiment.draws.inpainting import draw_inpaintings
from experiment.draws.masks import hidden_part
from experiment.draws.reverse_process import ReverseProcess
from experiment.draws.sampling import draw_interpolations, draw_samples
from experiment.errors import NumericalError, UserError
from experiment.run import Run, open_run

SCORE = {"kind": "score_sde", "hidden": [16], "label_dropout": 0.2, "sampler": {"steps": 8}}
FLOW = {"kind": "real_nvp", "layers": 2, "hidden": [16]}
DIGITS = {"kind": "digits", "layout": "image", "labels": True}
MOONS = {"kind": "toy", "name": "moons", "train_rows": 200, "validation_rows": 50, "test_rows": 50}


def make(folder: Path, model: dict[str, Any], data: dict[str, Any] = DIGITS, **settings: Any) -> Run:
    table = {
        "data": data,
        "preprocessing": {"kind": "scale" if data["kind"] == "digits" else "none"},
        "model": model,
        "train": {"steps": 40, "batch_size": 64, "learning_rate": 1e-2, "validate_every": 40, **settings},
    }
    return train(parse_config(table, source="test"), folder / "run", threads=1)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes longer than the draws; test_images.py and test_scripts.py look at them."""
    monkeypatch.setattr("experiment.draws.drawing.png", lambda figure: b"no picture")


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("scores"), SCORE).path


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = {key: value for key, value in SCORE.items() if key != "label_dropout"}
    return make(tmp_path_factory.mktemp("points"), model, MOONS).path


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("flow"), FLOW, {**DIGITS, "layout": "flat"}).path


def arrays(written: tuple[Path, ...]) -> list[Any]:
    return [np.load(path) for path in written if path.suffix == ".npy"]


def process(run: Path) -> ReverseProcess:
    found = ReverseProcess.of(load_run(run))
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["points", "flow", "scores"])
def test_draws_are_those_of_the_model_from_the_seed(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run = request.getfixturevalue(kind)
    x, *labels = arrays(draw_samples(run, count=12, seed=5, out=tmp_path / "a.npy", threads=1))
    told = None if kind == "points" else one_hot(torch.arange(12) % 10, 10)
    expected = load_run(run).sample((12,), context=told, generator=torch.Generator().manual_seed(5))
    np.testing.assert_array_equal(x, expected.numpy())
    assert [label.tolist() for label in labels] == ([] if told is None else [[*range(10), 0, 1]])


@pytest.mark.parametrize("kind", ["points", "flow", "scores"])
def test_a_seed_makes_its_sample_wherever_it_stands(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """In one batch, in chunks, in another order; up to rounding, which a level of a digit can turn."""
    run = request.getfixturevalue(kind)
    labels = None if kind == "points" else [3]

    def drawn(seeds: Any, **options: Any) -> Any:
        options = {"count": len(seeds), "seeds": seeds, "labels": labels, "out": tmp_path / "a.npy", **options}
        return arrays(draw_samples(run, **options, threads=1))[0]

    whole = drawn(range(20, 30))
    for other in (drawn(range(20, 30), chunk=3), drawn(range(29, 19, -1))[::-1], drawn([22, 7])[:1]):
        same = whole if len(other) == 10 else whole[2:3]
        if kind == "points":
            np.testing.assert_allclose(other, same, atol=1e-4)
        else:
            assert (np.abs(other - same) > 0).mean() < 0.02
    assert len(np.unique(whole.reshape(10, -1), axis=0)) == 10


def test_chunks_go_on_with_one_generator(points: Path, tmp_path: Path) -> None:
    """Without seeds a chunk is drawn after the other, and nothing twice."""
    x = arrays(draw_samples(points, count=7, chunk=3, seed=1, out=tmp_path / "a.npy", threads=1))[0]
    generator, model = torch.Generator().manual_seed(1), load_run(points)
    expected = torch.cat([model.sample((size,), generator=generator) for size in (3, 3, 1)])
    np.testing.assert_array_equal(x, expected.numpy())


def test_labels_are_taken_in_turn_across_chunks(scores: Path, tmp_path: Path) -> None:
    written = draw_samples(scores, count=8, labels=[3, 7, 1], chunk=2, out=tmp_path / "a.npy", threads=1)
    assert [path.name for path in written] == ["a.npy", "a.png", "a_labels.npy"]
    assert arrays(written)[1].tolist() == [3, 7, 1, 3, 7, 1, 3, 7]
    assert arrays(written)[1].dtype == np.int64


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_is_that_of_the_score(scores: Path, tmp_path: Path, guidance: float) -> None:
    """0 is no label at all, 1 the label as it is."""
    options = {"count": 4, "labels": [2], "out": tmp_path / "a.npy", "threads": 1}
    x, _ = arrays(draw_samples(scores, guidance=guidance, **options))
    parts, told = process(scores), one_hot(torch.full((4,), 2), 10)
    score = {
        0.0: ConditionalScore(parts.inner.score, torch.zeros_like(told)),
        1.0: ConditionalScore(parts.inner.score, told),
        2.5: classifier_free(parts.inner.score, told, guidance=2.5),
    }[guidance]
    generator = torch.Generator().manual_seed(0)
    x_T = parts.inner.prior.sample((4,), generator=generator)
    expected = parts.decode(parts.inner.sampler(score, parts.inner.sde, x_T, generator=generator))
    np.testing.assert_array_equal(x, expected.numpy())


def test_another_sampler_is_used_and_the_run_keeps_its_own(points: Path, tmp_path: Path) -> None:
    before = (points / "config.json").read_bytes()
    settings = ["sampler.kind=dpm_solver", "sampler.steps=5"]
    x = arrays(draw_samples(points, count=3, settings=settings, out=tmp_path / "a.npy", threads=1))[0]
    parts, generator = process(points), torch.Generator().manual_seed(0)
    x_T = parts.inner.prior.sample((3,), generator=generator)
    expected = DPMSolver(steps=5)(parts.inner.score, parts.inner.sde, x_T)
    np.testing.assert_array_equal(x, expected.numpy())
    assert (points / "config.json").read_bytes() == before


def test_every_sampler_serves_labels_and_seeds(scores: Path, tmp_path: Path) -> None:
    """Also the one whose rows leave at different times."""
    for kind in ("adaptive", "predictor_corrector", "edm_heun"):
        steps = ["sampler.predictor.steps=5"] if kind == "predictor_corrector" else []
        settings = [f"sampler.kind={kind}", *steps]
        options = {"settings": settings, "out": tmp_path / "a.npy", "threads": 1, "guidance": 2.0}
        x, labels = arrays(draw_samples(scores, count=5, seeds=range(5), chunk=2, **options))
        assert x.shape == (5, 1, 8, 8)
        assert labels.tolist() == [0, 1, 2, 3, 4]
    coupled = ["sampler.kind=predictor_corrector", "sampler.norms=batch", "sampler.predictor.steps=2"]
    with pytest.raises(UserError, match=r"^--seeds: .*it takes one torch\.Generator, not RowGenerators\.$"):
        draw_samples(scores, count=2, seeds=[1, 2], settings=coupled, out=tmp_path / "b.npy", threads=1)
    assert not list(tmp_path.glob("*b.*"))


def test_what_is_known_comes_back_and_the_rest_is_drawn(scores: Path, tmp_path: Path) -> None:
    """To the last level, of test rows that the seed chooses; the labels are theirs."""
    written = draw_inpaintings(scores, part="left", count=6, seed=3, resample=2, out=tmp_path / "a.npy", threads=1)
    x, labels = arrays(written)
    data = open_run(scores).load_data()
    hidden = hidden_part("left", (1, 8, 8), (8, 8)).numpy()
    test = data.test.numpy()
    index = [int(np.flatnonzero((test[:, ~hidden] == row[~hidden]).all(1))[0]) for row in x]
    assert labels.tolist() == data.labels.test[index].tolist()
    assert (x[:, hidden] != test[index][:, hidden]).mean() > 0.3
    assert len(set(index)) > 3
    others, _ = arrays(draw_inpaintings(scores, part="left", count=6, seed=4, out=tmp_path / "a.npy", threads=1))
    assert (others[:, ~hidden] != x[:, ~hidden]).any()
    _, told = arrays(
        draw_inpaintings(scores, part="left", count=3, labels=[1, 2], guidance=2.0, out=tmp_path / "a.npy", threads=1)
    )
    assert told.tolist() == [1, 2, 1]


def test_a_mask_of_a_file_is_that_of_its_name(scores: Path, tmp_path: Path) -> None:
    """In the shape of the image or of the event; and seeds choose row and noise whatever the chunk."""
    options = {"count": 4, "seeds": range(4), "threads": 1}
    drawn = [
        arrays(draw_inpaintings(scores, part="box", out=tmp_path / "a.npy", chunk=chunk, **options))[0]
        for chunk in (None, 3)
    ]
    assert (drawn[0] != drawn[1]).mean() < 0.02
    mask = hidden_part("box", (1, 8, 8), (8, 8)).numpy()
    for shaped in (mask, mask[0], mask[0].astype(np.int64)):
        np.save(tmp_path / "mask.npy", shaped)
        part = str(tmp_path / "mask.npy")
        np.testing.assert_array_equal(
            arrays(draw_inpaintings(scores, part=part, out=tmp_path / "b.npy", **options))[0], drawn[0]
        )


def test_parts_of_points_are_drawn_by_a_mask(points: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.array([0, 1]))
    x = arrays(draw_inpaintings(points, part=str(tmp_path / "mask.npy"), count=5, out=tmp_path / "a.npy", threads=1))[0]
    test = open_run(points).load_data().test.numpy()
    assert np.isin(x[:, 0], test[:, 0]).all()
    assert not np.isin(x[:, 1], test[:, 1]).any()


def test_the_named_parts() -> None:
    parts = {part: hidden_part(part, (1, 4, 6), (4, 6))[0] for part in ("left", "right", "top", "bottom", "box")}
    assert torch.equal(parts["left"], ~parts["right"])
    assert torch.equal(parts["top"], ~parts["bottom"])
    assert parts["left"].nonzero()[:, 1].unique().tolist() == [0, 1, 2]
    assert parts["top"].nonzero()[:, 0].unique().tolist() == [0, 1]
    assert (parts["box"].sum().item(), parts["box"][1:3, 1:5].all().item()) == (8, True)
    colour = hidden_part("right", (48,), (3, 4, 4)).reshape(3, 4, 4)
    assert torch.equal(colour, hidden_part("right", (4, 4), (4, 4)).expand(3, 4, 4))


@pytest.mark.parametrize("kind", ["scores", "flow"])
def test_ways_lead_from_a_test_row_to_another_of_its_class(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Their ends come back, of a score model up to a level here and there for the solver's error."""
    run = request.getfixturevalue(kind)
    out = tmp_path / "a.npy"
    x, labels = arrays(draw_interpolations(run, count=4, steps=3, labels=[5, 0], seed=1, out=out, threads=1))
    assert x.shape[:2] == (4, 3)
    assert labels.tolist() == [5, 0, 5, 0]
    data = open_run(run).load_data()
    ends = []
    for way, label in zip(x, labels, strict=True):
        own = data.test[data.labels.test == label].numpy()
        for end in (way[0], way[-1]):
            different = (own != end).reshape(len(own), -1).mean(1)
            assert different.min() < 0.02
            ends.append(different.argmin())
        assert (way[1] != way[0]).mean() > 0.1
    assert len(set(ends)) > 4


def test_ways_of_points_end_where_they_began(points: Path, tmp_path: Path) -> None:
    """The ODE up and down again within its tolerance; a looser one, asked for, is used."""
    ends = []
    for settings in ((), ("sampler.kind=probability_flow", "sampler.rtol=0.1", "sampler.atol=0.1")):
        out = tmp_path / "a.npy"
        x = arrays(draw_interpolations(points, count=5, steps=2, settings=settings, out=out, threads=1))[0]
        test = open_run(points).load_data().test.numpy()
        ends.append(max(np.abs(test - end).max(1).min() for end in x.reshape(-1, 2)))
    assert ends[0] < 1e-3
    assert ends[1] > 2 * ends[0]


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("scores", {"labels": [3, 10]}, r"^--label must lie within 0 and 9, but is 10\.$"),
        (
            "points",
            {"labels": [0]},
            r"^--label needs a run that was trained with data\.labels=true, which run was not\.$",
        ),
        (
            "points",
            {"guidance": 2.0},
            r"^--guidance needs a run that was trained with data\.labels=true and model\.label",
        ),
        ("flow", {"guidance": 2.0}, r"^--guidance needs a score_sde, but run is a real_nvp\.$"),
        ("scores", {"guidance": float("nan")}, r"^--guidance must be finite, but is nan\.$"),
        ("flow", {"animate": Path("a.gif")}, r"^--animate needs a score_sde, but run is a real_nvp\.$"),
        ("scores", {"seeds": [1]}, r"^--seeds gives 1 rows a seed, but --count is 2\.$"),
        (
            "scores",
            {"seeds": [1, 2**63]},
            r"^--seeds must lie within 0 and 2\*\*63 - 1, but is 9223372036854775808\.$",
        ),
        ("scores", {"chunk": 0}, r"^--chunk must be 1 or more, but is 0\.$"),
        ("scores", {"settings": ["sampler.stepz=3"]}, r"^--set sampler\.stepz=3: unknown key 'model\.sampler\.stepz'"),
        ("flow", {"settings": ["sampler.steps=3"]}, r"^--set sampler\.steps=3: unknown key 'model\.sampler'"),
        ("scores", {"temperature": 0.5}, r"^--temperature needs a flow, but run is a score_sde\.$"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    kind: str, options: Any, sentence: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        draw_samples(request.getfixturevalue(kind), **{"count": 2, "out": tmp_path / "a.npy", **options}, threads=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        (
            "scores",
            {"part": "middle"},
            r"^--inpaint takes left, right, top, bottom, box or a mask as a \.npy file, but",
        ),
        ("scores", {"part": "none.npy"}, r"^--inpaint none\.npy: there is no such file\.$"),
        ("points", {"part": "left"}, r"^--inpaint left needs images, but rows here are no images; give a mask"),
        ("flow", {"part": "left"}, r"^--inpaint needs a score_sde, but run is a real_nvp\.$"),
        ("scores", {"part": "left", "resample": 0}, r"^--resample must be 1 or more, but is 0\.$"),
        (
            "scores",
            {"part": "left", "settings": ["sampler.kind=dpm_solver"]},
            r"^--inpaint needs a sampler that moves step by step, as --set sampler\.kind=ancestral, but has DPM",
        ),
    ],
)
def test_parts_that_cannot_be_drawn_are_refused(
    kind: str, options: Any, sentence: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        draw_inpaintings(request.getfixturevalue(kind), count=2, out=tmp_path / "a.npy", **options, threads=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (np.ones((4, 4)), r"mask\.npy: the mask has shape \(4, 4\), but must have \(1, 8, 8\) or \(8, 8\)\.$"),
        (np.full((8, 8), 0.5), r"mask\.npy: a mask holds true and false, or 1 and 0, and nothing else\.$"),
        (
            np.ones((8, 8)),
            r"mask\.npy: the mask must be true somewhere and false somewhere, but is the same all over\.$",
        ),
        (np.array(["a"]), r"mask\.npy: a mask holds true and false, or 1 and 0, and nothing else\.$"),
        (None, r"mask\.npy: this is not an array of plain numbers; write it with numpy\.save\.$"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(scores: Path, tmp_path: Path, mask: Any, sentence: str) -> None:
    path = tmp_path / "mask.npy"
    path.write_text("no array") if mask is None else np.save(path, mask)
    with pytest.raises(UserError, match=sentence):
        draw_inpaintings(scores, part=str(path), count=2, out=tmp_path / "a.npy", threads=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mask.npy"]


def test_ways_need_a_latent_space(scores: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--interpolate needs --set sampler\.kind=probability_flow, which has latents, "
    ):
        draw_interpolations(scores, count=2, settings=["sampler.steps=3"], out=tmp_path / "a.npy", threads=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [NumericalError, KeyboardInterrupt])
def test_what_fails_on_the_way_leaves_no_part_of_a_file(
    points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Nor takes away what was there: a file is whole, the old one or the new one."""
    (tmp_path / "a.npy").write_text("before")
    sample = ReverseProcess.sample
    calls = []

    def failing(self: ReverseProcess, rows: int, **options: Any) -> torch.Tensor:
        calls.append(rows)
        if len(calls) == 3 and error is KeyboardInterrupt:
            raise KeyboardInterrupt
        x = sample(self, rows, **options)
        return x * torch.nan if len(calls) == 3 else x

    monkeypatch.setattr(ReverseProcess, "sample", failing)
    with pytest.raises(error, match="sample 4 is not finite" if error is NumericalError else None):
        draw_samples(points, count=8, chunk=2, out=tmp_path / "a.npy", threads=1)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.npy": "before"}


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from experiment.draws.sampling import draw_samples

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

run, out = map(Path, sys.argv[1:])
draw_samples(run, count=2500, chunk=500, out=out, threads=1)
before = peak()
draw_samples(run, count=100_000, chunk=500, out=out, threads=1)
print(peak() - before, out.stat().st_size / 2**20, len(np.load(out, mmap_mode="r")))
"""


def test_any_number_of_samples_takes_the_memory_of_a_chunk(flow: Path, tmp_path: Path) -> None:
    """A file of 24 MiB adds less than a fifth of that to the peak."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", MEASURE, flow, tmp_path / "a.npy"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    added, size, rows = map(float, done.stdout.split())
    assert (size, rows) == (pytest.approx(24.4, abs=0.1), 100_000)
    assert added < 5


@pytest.mark.slow
def test_labels_are_learned_and_guidance_sharpens_them(tmp_path: Path) -> None:
    """A judge that knows the digits finds the label of a draw in most draws, and in more with guidance."""
    data = digits(labels=True)
    judge = LogisticRegression(max_iter=300).fit(data.train.numpy() / 16, data.labels.train.numpy())
    assert judge.score(data.test.numpy() / 16, data.labels.test.numpy()) > 0.95
    model = {**SCORE, "hidden": [64, 64], "sampler": {"kind": "dpm_solver"}}
    settings = {"steps": 1500, "batch_size": 256, "learning_rate": 2e-3, "ema_decay": 0.99, "validate_every": 500}
    run = make(tmp_path, model, {**DIGITS, "layout": "flat"}, **settings)
    found = []
    for guidance in (0.0, 1.0, 3.0):
        x, labels = arrays(draw_samples(run.path, count=500, guidance=guidance, threads=1))
        found.append(judge.score(x / 16, labels))
    assert found[0] < 0.2, "without a label one in ten"
    assert found[1] > 0.6
    assert found[2] > max(found[1] + 0.03, 0.9)
