"""Moving pictures: which states are kept, what they show, and which files can be written."""

import stat
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from experiment import train
from experiment.config import parse_config
from experiment.draws.animation import FRAMES, HELD, Recorder, check_animation, shown, write_animation
from experiment.draws.inpainting import draw_inpaintings
from experiment.draws.sampling import draw_samples
from experiment.errors import UserError

SCORE = {"kind": "score_sde", "hidden": [8], "sampler": {"steps": 12}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = {"images": {"kind": "digits", "layout": "image"}, "points": {"kind": "toy", "name": "moons"}}
    tables = {name: {"data": d, "model": SCORE, "train": {"steps": 1, "batch_size": 8}} for name, d in data.items()}
    return {
        name: train(parse_config(table, source="test"), folder / name, threads=1).path for name, table in tables.items()
    }


@pytest.mark.parametrize("steps", [1, 10, FRAMES, 2 * FRAMES - 1, 2 * FRAMES, 333, 1000])
def test_states_are_evenly_spread_from_start_to_end(steps: int) -> None:
    recorder = Recorder(rows=2)
    x = torch.zeros(3, 1)
    for step in range(-1, steps):
        x.fill_(step)  # a sampler may go on in place
        recorder(step, x)
    kept = [state[0].item() for state in recorder.states()]
    assert all(state.shape == (2, 1) for state in recorder.states())
    assert (kept[0], kept[-1]) == (-1, steps - 1)
    assert min(steps + 1, FRAMES) <= len(kept) <= 2 * FRAMES
    gaps = np.diff(kept)
    assert (gaps[:-1] == gaps[0]).all()
    assert 0 < gaps[-1] <= gaps[0]


def test_noise_of_images_is_damped_and_the_end_is_not() -> None:
    states = [torch.full((4, 2), 50.0), torch.full((4, 2), 0.7), torch.full((4, 2), 3.0)]
    images = shown(states, lambda z: 10 * z, std=0.5, images=True)
    assert [frame[0, 0] for frame in images] == pytest.approx([10.0, 7.0, 30.0])
    points = shown(states, lambda z: 10 * z, std=0.5, images=False)
    assert [frame[0, 0] for frame in points] == pytest.approx([500.0, 7.0, 30.0])


@pytest.mark.parametrize("kind", ["images", "points"])
def test_a_gif_goes_from_noise_to_the_samples(runs: dict[str, Path], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    options = {"count": 80, "chunk": 70, "out": tmp_path / "a.npy", "threads": 1}
    written = draw_samples(runs[kind], animate=path, **options)
    assert written[-1] == path
    with Image.open(path) as gif:
        assert 13 <= gif.n_frames <= 14, "one of them is the end once more, held"
        frames = []
        for i in range(gif.n_frames):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("L"), dtype=float))
        assert gif.info["duration"] >= 1000 * HELD // 12, "the end is held"
    assert (np.abs(frames[-1] - frames[0]) > 50).sum() > 50
    still = np.load(tmp_path / "a.npy")
    draw_samples(runs[kind], **options)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), still, "looking on changes nothing")


def test_parts_that_are_drawn_move_too(runs: dict[str, Path], tmp_path: Path) -> None:
    *_, path = draw_inpaintings(
        runs["images"], part="top", count=4, animate=tmp_path / "a.gif", out=tmp_path / "a.npy", threads=1
    )
    with Image.open(path) as gif:
        assert gif.n_frames > 10


def fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, *, status: int) -> None:
    """A program that takes frames and writes how many bytes came, as the file that ffmpeg would."""
    program = folder / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nframes = sys.stdin.buffer.read()\n"
        f"open(sys.argv[-1], 'w').write(str(len(frames))) if len(sys.argv) > 2 else None\nsys.exit({status})\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setitem(mpl.rcParams, "animation.ffmpeg_path", str(program))


def test_an_mp4_is_written_by_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ffmpeg(tmp_path, monkeypatch, status=0)
    frames = [np.zeros((4, 2)), np.ones((4, 2))]
    check_animation(tmp_path / "a.mp4")
    write_animation(tmp_path / "a.mp4", frames, image_shape=None, bins=None, title="t")
    size = int((tmp_path / "a.mp4").read_text())
    assert size % (len(frames) + HELD) == 0
    assert size > 100_000 * (len(frames) + HELD)


def test_an_ffmpeg_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ffmpeg(tmp_path, monkeypatch, status=1)
    with pytest.raises(UserError, match=r"a\.mp4: ffmpeg failed; a \.gif needs nothing\.$"):
        write_animation(tmp_path / "a.mp4", [np.ones((4, 2))], image_shape=None, bins=None, title="t")
    assert [p.name for p in tmp_path.iterdir()] == ["ffmpeg"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a.avi", r"^--animate must end in \.gif or \.mp4, but is .*a\.avi\.$"),
        ("a.mp4", r"^--animate .*a\.mp4 needs ffmpeg, which is not installed here; a \.gif needs nothing\.$"),
        ("none/a.gif", r"^--animate .*a\.gif has no folder to go to: .*none does not exist\.$"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_drawn(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    monkeypatch.setitem(mpl.rcParams, "animation.ffmpeg_path", str(tmp_path / "no ffmpeg"))
    with pytest.raises(UserError, match=sentence):
        draw_samples(runs["points"], count=2, animate=tmp_path / name, out=tmp_path / "a.npy", threads=1)
    assert not list(tmp_path.iterdir())


def test_rows_of_one_value_do_not_move(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(60, 1)))
    table = {"data": {"kind": "table", "path": "rows.npy"}, "model": SCORE, "train": {"steps": 1, "batch_size": 8}}
    run = train(parse_config(table, source="test"), tmp_path / "run", data_root=tmp_path, threads=1)
    with pytest.raises(
        UserError, match=r"^--animate shows images or points of two columns or more, but rows here have"
    ):
        draw_samples(run.path, count=2, animate=tmp_path / "a.gif", threads=1)
