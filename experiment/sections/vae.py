"""Variational autoencoders."""

from typing import Literal

from pydantic import Field

from experiment.sections.base import Activation, Count, Section, Widths


class VAEModel(Section):
    """See `discrete.inference.VAE` and, for the last two, `NegativeELBO`."""

    kind: Literal["vae"]
    latent: Count = 64
    posterior: Literal["diagonal", "planar", "iaf", "sylvester"] = "diagonal"
    layers: Count = 4
    posterior_hidden: Widths = (320,)
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    hidden: Widths | None = None
    features: Count = 256
    activation: Activation = "relu"
    importance_samples: Count = 1
    beta_warmup_steps: int = Field(0, strict=True, ge=0)
    free_nats: float = Field(0.0, ge=0)
