"""Tables of numbers out of pickles of pandas, without pandas and without trust."""

import pickle
from typing import IO, Any, final

import numpy as np
from numpy.typing import NDArray

from experiment.errors import UserError

Array = NDArray[Any]


def read_frame(file: IO[bytes], name: str) -> dict[str, Array]:
    """The columns of a pickled DataFrame of numbers, in their order, as pandas writes it now and did under Python 2.

    A pickle is a program. This one gets numpy's plain arrays and, for each of the few classes of which a DataFrame
    consists, an object that keeps what it is given and does nothing; whatever else it asks for ends the reading.

    Checked by tests/experiment/data/test_data_frames.py.

    Args:
        file: the pickle.
        name: what messages call it.

    Returns:
        Each column under its name, (rows,), of the dtype that it has there.

    Raises:
        UserError: the pickle asks for anything else, is damaged, or holds anything but a table of numbers.
    """
    try:
        return _columns(_Unpickler(file, name).load())
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(
            f"{name}: this is not a pickled table of numbers ({type(error).__name__}: {error}); write one with "
            "DataFrame.to_pickle."
        ) from error


@final
class _Kept:
    """Stands in for a class or function of pandas: what it was called with, and the state that it was given."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "_Kept":
        kept = super().__new__(cls)
        kept.arguments, kept.state = arguments, None
        return kept

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _empty(kind: type, shape: tuple[int, ...], code: Any) -> Array:
    """The array that a pickle fills; numpy itself would make one of any size."""
    if kind is not np.ndarray or shape != (0,):
        raise ValueError(f"an array begins as {kind} of shape {shape}")
    return np.empty(0, np.uint8)


def _from_buffer(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Array:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them into a pickle that Python 2 can read."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


PANDAS = frozenset(
    {"DataFrame", "BlockManager", "_unpickle_block", "new_block", "_new_Index", "Index", "RangeIndex", "Int64Index"}
)
OTHERS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("builtins", "slice"): slice,
    ("__builtin__", "slice"): slice,
    ("_codecs", "encode"): _encode,
}


@final
class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], source: str) -> None:
        super().__init__(file, encoding="latin1")  # of bytes that Python 2 wrote
        self.source = source

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pandas" and name in PANDAS:
            return _Kept
        if (module, name) in OTHERS:
            return OTHERS[module, name]
        raise UserError(
            f"{self.source}: the pickle asks for {module}.{name}, which no table of numbers needs; it was not called."
        )


def _columns(frame: _Kept) -> dict[str, Array]:
    """Blocks of columns of one dtype, each with the places of its columns, put in order."""
    state = frame.state
    manager = state["_mgr"] if "_mgr" in state else state["_data"]
    if manager.arguments:  # since pandas 1.3
        blocks, axes = manager.arguments
        parts = [block.arguments[:2] for block in blocks]
    else:
        written = manager.state[3]["0.14.1"]
        axes, parts = written["axes"], [(block["values"], block["mgr_locs"]) for block in written["blocks"]]
    names = _names(axes[0])
    columns: dict[int, Array] = {}
    for values, places in parts:
        if values.dtype.kind not in "iuf":
            raise ValueError(f"found {values.dtype} values")
        columns |= zip(np.arange(len(names))[places].tolist(), values, strict=True)
    return {name: columns[place] for place, name in enumerate(names)}


def _names(index: _Kept) -> list[str]:
    """Names of the columns, from what an index is made anew with."""
    made = index.arguments[1]
    return [str(name) for name in (made["data"] if "data" in made else range(made["start"], made["stop"]))]
