"""`python tests/refusals.py` prints what each option of an unknown name or an impossible value is told.

A program of its own: the annotations that tests enforce would refuse it first, in other words.
"""

import json
from collections.abc import Callable
from typing import Any

import torch

from cflows import (
    FFJORD,
    NCSN,
    ConditionalFlowMatching,
    EulerMaruyama,
    FlowMatching,
    Inpainting,
    PredictorCorrector,
    RegularizedLikelihood,
    ScoreSDE,
)
from core import KernelDensity
from discrete import (
    MADE,
    NICE,
    NSF,
    AffineCoupling,
    Glow,
    Invertible1x1Conv,
    LinearFlow,
    MaskedAutoregressive,
    MintNet,
    PatchAutoregressive,
    Permutation,
    Planar,
    RealNVP,
    Triangular,
    WaveNet,
)
from discrete.inference import DensityDistillation, distill

WRONG: Any = "wrong"
SHOWN = {  # of what is not called wrong
    "bound of a coupling": "0.0",
    "depth of Glow": "depth=0",
    "layers of MintNet": "layers=0",
    "layers of NICE": "layers=0",
    "cycles of WaveNet": "cycles=0",
    "layers of RealNVP": "layers=0",
    "strides of RealNVP": "strides=(2,)",
    "mask of Inpainting": "torch.float32",
    "resample of Inpainting": "resample is 0",
    "penalties": "kinetic=-1.0",
    "steps of distillation": "steps=0",
    "rows of KernelDensity": "(3,)",
    "triangle of KernelDensity": "1",
    "bins of NSF": "bins is 1",
}
REFUSED: dict[str, Callable[[], object]] = {
    "activation of Planar": lambda: Planar(2, activation=WRONG),
    "activation of a network": lambda: AffineCoupling(4, activation=WRONG),
    "conditioner of a coupling": lambda: AffineCoupling(4, conditioner=WRONG),
    "mask of a coupling": lambda: AffineCoupling(4, mask=WRONG),
    "scale of a coupling": lambda: AffineCoupling(4, scale=WRONG),
    "bound of a coupling": lambda: AffineCoupling(4, log_scale_bound=0.0),
    "coupling of Glow": lambda: Glow((1, 4, 4), levels=1, coupling=WRONG),
    "depth of Glow": lambda: Glow((1, 4, 4), levels=1, depth=0),
    "parametrization of LinearFlow": lambda: LinearFlow(4, parametrization=WRONG),
    "parametrization of a convolution": lambda: Invertible1x1Conv((2, 4, 4), parametrization=WRONG),
    "triangle": lambda: Triangular(3, triangle=WRONG),
    "layers of MintNet": lambda: MintNet(4, layers=0),
    "normalization of MintNet": lambda: MintNet(4, normalization=WRONG),
    "cycles of WaveNet": lambda: WaveNet(4, bins=4, cycles=0),
    "layers of NICE": lambda: NICE(4, layers=0),
    "layers of RealNVP": lambda: RealNVP(4, layers=0),
    "normalization of RealNVP": lambda: RealNVP(4, normalization=WRONG),
    "strides of RealNVP": lambda: RealNVP((1, 4, 4), strides=(2,)),
    "order of Permutation": lambda: Permutation(3, order=WRONG),
    "order of patches": lambda: PatchAutoregressive((1, 4, 4), patch=2, order=WRONG),
    "order of MADE": lambda: MADE(3, order=WRONG),
    "transformer of MAF": lambda: MaskedAutoregressive(3, transformer=WRONG),
    "bins of NSF": lambda: NSF(4, bins=1),
    "start of NCSN": lambda: NCSN(2, start=WRONG),
    "conditioning of NCSN": lambda: NCSN(2, conditioning=WRONG),
    "network of FFJORD": lambda: FFJORD(2, network=WRONG),
    "network of ScoreSDE": lambda: ScoreSDE(2, network=WRONG),
    "spacing of a sampler": lambda: EulerMaruyama(steps=2, spacing=WRONG),
    "norms of a corrector": lambda: PredictorCorrector(predictor=EulerMaruyama(steps=2), norms=WRONG),
    "mask of Inpainting": lambda: Inpainting(EulerMaruyama(steps=2), torch.zeros(2), torch.zeros(2)),
    "resample of Inpainting": lambda: Inpainting(
        EulerMaruyama(steps=2), torch.zeros(2), torch.zeros(2, dtype=torch.bool), resample=0
    ),
    "coupling of flow matching": lambda: ConditionalFlowMatching(FlowMatching(2), coupling=WRONG),
    "penalties": lambda: RegularizedLikelihood(FFJORD(2), kinetic=-1.0),
    "gradient of distillation": lambda: DensityDistillation(NICE(4), NICE(4), gradient=WRONG),
    "steps of distillation": lambda: distill(NICE(4), NICE(4), steps=0),
    "rows of KernelDensity": lambda: KernelDensity(torch.zeros(3), torch.eye(2)),
    "triangle of KernelDensity": lambda: KernelDensity(torch.zeros(3, 2), torch.ones(2, 2)),
}


def main() -> None:
    """A line of JSON each."""
    for name, call in REFUSED.items():
        try:
            call()
            said = ""
        except ValueError as error:
            said = str(error)
        print(json.dumps({"option": name, "shown": SHOWN.get(name, repr(WRONG)), "said": said}))


if __name__ == "__main__":
    main()
