"""Tables out of pickles: those that pandas writes now, one as pandas 0.19 wrote it under Python 2, and bombs."""

import io
import os
import pickle
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiment.data import frames
from experiment.errors import UserError


def read_frame(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        return frames.read_frame(file, str(path))


def frame(rows: int = 7) -> pd.DataFrame:
    """Columns of four types in turn, so that a block of one type holds columns that do not lie side by side."""
    random = np.random.default_rng(0)
    types = ["f8", "i8", "f4", "f8", "u1", "i8", "f8"]
    columns = {f"R{place}": (50 * random.random(rows)).astype(kind) for place, kind in enumerate(types)}
    made = pd.DataFrame(columns)
    return made.set_axis(pd.Index(list(columns), dtype=object), axis=1)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_table_that_pandas_writes_comes_back(tmp_path: Path, protocol: int) -> None:
    path, made = tmp_path / "x.pickle", frame()
    made.to_pickle(path, protocol=protocol)
    columns = read_frame(path)
    assert list(columns) == list(made.columns)
    for name, values in columns.items():
        assert values.dtype == made[name].dtype
        assert np.array_equal(values, made[name].to_numpy())


def test_columns_without_names_are_numbered(tmp_path: Path) -> None:
    x = np.arange(6.0).reshape(3, 2)
    pd.DataFrame(x).to_pickle(tmp_path / "x.pickle")
    assert {name: values.tolist() for name, values in read_frame(tmp_path / "x.pickle").items()} == {
        "0": [0, 2, 4],
        "1": [1, 3, 5],
    }


@dataclass
class Named:
    """A class or function of a pickle, which need not exist."""

    module: str
    name: str


@dataclass
class Made:
    """What a call makes: an object of a class, or the value of a function, with a state put into it."""

    what: Named
    arguments: tuple[Any, ...] = ()
    state: Any = None
    call: bytes = pickle.NEWOBJ


class Python2(pickle._Pickler):  # type: ignore[misc, name-defined]
    """Writes as Python 2 did at its highest protocol: text and bytes are one."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        match obj:
            case Named():
                self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            case Made():
                self.save(obj.what)
                self.save(obj.arguments)
                self.write(obj.call)
                if obj.state is not None:
                    self.save(obj.state)
                    self.write(pickle.BUILD)
            case str() | bytes():
                content = obj.encode("latin1") if isinstance(obj, str) else obj
                self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
            case np.ndarray():
                content = obj.tolist() if obj.dtype == object else obj.tobytes()
                state = (1, obj.shape, obj.dtype, False, content)
                arguments = (Named("numpy", "ndarray"), (0,), "b")
                self.save(Made(Named("numpy.core.multiarray", "_reconstruct"), arguments, state, pickle.REDUCE))
            case _:
                super().save(obj, save_persistent_id)


def write(path: Path, made: object) -> Path:
    file = io.BytesIO()
    Python2(file, 2).dump(made)
    path.write_bytes(file.getvalue())
    return path


def index(kind: str, **made: object) -> Made:
    module = "pandas.indexes.range" if kind == "RangeIndex" else "pandas.indexes.base"
    new = Named("pandas.indexes.base", "_new_Index")
    return Made(new, (Named(module, kind), {"name": None, **made}), call=pickle.REDUCE)


def old_frame(names: list[str], blocks: list[tuple[object, np.ndarray]]) -> Made:
    """As `DataFrame.__getstate__` and `BlockManager.__getstate__` of pandas 0.14 to 1.2 gave it."""
    rows = blocks[0][1].shape[1]
    items = index("Index", data=np.array(names, dtype=object))
    axes = [items, index("RangeIndex", start=0, stop=rows, step=1)]
    parts = [{"values": values, "mgr_locs": places} for places, values in blocks]
    state = (
        axes,
        [values for _, values in blocks],
        [items for _ in blocks],
        {"0.14.1": {"axes": axes, "blocks": parts}},
    )
    manager = Made(Named("pandas.core.internals", "BlockManager"), state=state)
    return Made(Named("pandas.core.frame", "DataFrame"), state={"_data": manager, "_typ": "dataframe", "_metadata": []})


def test_a_table_of_python_2_comes_back(tmp_path: Path) -> None:
    x, counts = np.random.default_rng(0).normal(size=(2, 5)), np.arange(5).reshape(1, 5)
    odd = Made(Named("__builtin__", "slice"), (0, 3, 2), call=pickle.REDUCE)
    path = write(tmp_path / "x.pickle", old_frame(["Time", "n", "R1"], [(odd, x), (np.array([1]), counts)]))
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in path.read_bytes()
    assert b"cpandas.core.internals\nBlockManager\n" in path.read_bytes()
    columns = read_frame(path)
    assert list(columns) == ["Time", "n", "R1"]
    assert np.array_equal(np.stack([columns["Time"], columns["R1"]]), x)
    assert columns["n"].tolist() == [0, 1, 2, 3, 4]


class Bomb:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bomb_is_refused_before_it_runs(tmp_path: Path, protocol: int) -> None:
    path, mark = tmp_path / "x.pickle", tmp_path / "mark"
    bomb = Bomb(os.system, f"touch {mark}")
    path.write_bytes(pickle.dumps([bomb, frame()], protocol))
    with pytest.raises(UserError) as refusal:
        read_frame(path)
    assert str(refusal.value) == (
        f"{path}: the pickle asks for {os.name}.system, which no table of numbers needs; it was not called."
    )
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "it is one"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("pandas", "read_pickle"),
        ("pandas.io.common", "os.system"),
        ("pandas.core.frame", "DataFrame.eval"),
        ("pandasystem", "DataFrame"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("posix", "system"),
        ("numpy.core.multiarray", "fromfile"),
    ],
)
def test_whatever_else_a_pickle_asks_for_is_refused(tmp_path: Path, module: str, name: str) -> None:
    path = tmp_path / "x.pickle"
    names = (pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in (module, name))
    path.write_bytes(pickle.PROTO + b"\x04" + b"".join(names) + pickle.STACK_GLOBAL + b")R.")
    with pytest.raises(
        UserError, match=rf"x\.pickle: the pickle asks for {re.escape(module)}\.{re.escape(name)}, which"
    ):
        read_frame(path)


def test_an_array_of_any_size_is_refused(tmp_path: Path) -> None:
    array = Made(
        Named("numpy.core.multiarray", "_reconstruct"), (Named("numpy", "ndarray"), (2**40,), "b"), call=pickle.REDUCE
    )
    with pytest.raises(UserError, match=r"this is not a pickled table of numbers \(ValueError: an array begins as"):
        read_frame(write(tmp_path / "x.pickle", array))


def test_bytes_come_in_one_encoding_only(tmp_path: Path) -> None:
    encoded = Made(Named("_codecs", "encode"), ("x" * 9, "zlib_codec"), call=pickle.REDUCE)
    with pytest.raises(UserError, match=r"\(ValueError: bytes in the encoding 'zlib_codec'\)"):
        read_frame(write(tmp_path / "x.pickle", encoded))


def test_what_is_no_table_of_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pickle"
    frame().to_pickle(path)
    whole = path.read_bytes()
    text = frame().astype(object).assign(R0=pd.Series(["a"] * 7, dtype=object))
    contents = [whole[:200], b"", b"1,2\n3,4\n", pickle.dumps([1, 2]), pickle.dumps(np.zeros(3))]
    for content in [*contents, pickle.dumps(text.set_axis(text.columns.astype(object), axis=1))]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.pickle: this is not a pickled table of numbers \(.*; write one with"):
            read_frame(path)
