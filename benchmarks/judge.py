"""A small classifier of MNIST, trained apart from every model: what its features and its doubts say of draws."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.labels import Labelled
from benchmarks.record import RUNS
from experiment.training.checkpoint import load_checkpoint, save_checkpoint

SETTINGS = {"widths": (16, 32), "features": 64, "epochs": 3, "batch": 128, "learning_rate": 3e-3, "seed": 0}
CACHE = RUNS / "mnist-judge" / "judge.ckpt"
CONFIDENT, CHUNK = 0.9, 1000

Images = Float[Tensor, "rows 784"]  # pixels in [0, 1]


class Judge(nn.Module):
    """Two convolutions, each halved by its maxima, and two layers: features, then the logits of the ten classes."""

    def __init__(self, *, widths: tuple[int, int], features: int) -> None:
        super().__init__()
        a, b = widths
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, a, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(a, b, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.hidden = nn.Sequential(nn.Linear(49 * b, features), nn.SiLU())  # no feature dies
        self.classes = nn.Linear(features, 10)

    def features(self, x: Images) -> Float[Tensor, "rows features"]:
        """What the last layer is told."""
        return self.hidden(self.convolutions(rearrange(x, "rows (h w) -> rows 1 h w", h=28)))

    def forward(self, x: Images) -> Float[Tensor, "rows 10"]:
        """Logits."""
        return self.classes(self.features(x))


def trained_judge(known: Labelled) -> Judge:
    """The judge as it was trained with these settings, or trained now, for about a minute on one core."""
    judge = Judge(widths=SETTINGS["widths"], features=SETTINGS["features"])
    if CACHE.exists():
        state = load_checkpoint(CACHE)
        if state["settings"] == SETTINGS:
            judge.load_state_dict(state["judge"])
            return judge.eval()
    with torch.random.fork_rng():
        torch.manual_seed(SETTINGS["seed"])
        judge = train(Judge(widths=SETTINGS["widths"], features=SETTINGS["features"]), known)
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(CACHE, {"settings": SETTINGS, "judge": judge.state_dict()})
    return judge


def train(judge: Judge, known: Labelled) -> Judge:
    """Cross entropy by Adam, the rate falling to zero, in an order that the global generator draws."""
    x, y = (torch.from_numpy(part) for part in known)
    x, steps = x.float(), SETTINGS["epochs"] * (len(x) // SETTINGS["batch"])
    optimizer = torch.optim.Adam(judge.parameters(), lr=SETTINGS["learning_rate"])
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(SETTINGS["epochs"]):
        for index in torch.randperm(len(x)).split(SETTINGS["batch"])[: len(x) // SETTINGS["batch"]]:
            optimizer.zero_grad()
            F.cross_entropy(judge(x[index]), y[index]).backward()
            optimizer.step()
            rate.step()
    return judge.eval()


@torch.no_grad()
def features_of(judge: Judge, x: Images) -> Float[Tensor, "rows features"]:
    """Features of many rows."""
    return torch.cat([judge.features(part) for part in x.float().split(CHUNK)])


@torch.no_grad()
def confident_share(judge: Judge, features: Float[Tensor, "rows features"]) -> float:
    """Share of rows, given by their features, whose likeliest class has more than 0.9."""
    return (judge.classes(features).softmax(1).max(1).values > CONFIDENT).double().mean().item()


@torch.no_grad()
def accuracy(judge: Judge, unseen: Labelled) -> float:
    """Share of labelled rows that it knows."""
    x, y = (torch.from_numpy(part) for part in unseen)
    return (judge.classes(features_of(judge, x)).argmax(1) == y).double().mean().item()
