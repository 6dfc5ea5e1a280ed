"""A variational autoencoder and its objective, from a config."""

from discrete import Bijection, Flow
from discrete.inference import VAE, NegativeELBO
from experiment.building.objective import Preprocessed
from experiment.sections.vae import VAEModel


def takes_raw_integers(section: object) -> bool:
    """Whether the model is a VAE that gives whole numbers a probability mass."""
    return isinstance(section, VAEModel) and section.likelihood == "bernoulli"


def build_autoencoder(
    section: VAEModel, event_shape: tuple[int, ...], preprocessing: Bijection | None, *, bins: int | None, classes: int
) -> tuple[VAE | Flow, Preprocessed]:
    """The model over raw data, and its objective.

    Args:
        section: the `[model]` section.
        event_shape: shape of one row.
        preprocessing: what stands before the model, without trainable parameters; None for the data as they are.
        bins: levels of integer data, None for continuous data.
        classes: classes of labelled data, 0 for none.

    Raises:
        ValueError: a likelihood that does not fit the data.
    """
    if section.likelihood == "bernoulli" and bins != 2:
        raise ValueError(
            f"likelihood=bernoulli takes values 0 and 1, but the data have {bins} levels; set data.binarize, or choose "
            "likelihood=gaussian."
        )
    options = section.model_dump(exclude={"kind", "beta_warmup_steps", "free_nats"})
    vae = VAE(event_shape, context_features=classes, **options)
    objective = NegativeELBO(vae, warmup_steps=section.beta_warmup_steps, free_nats=section.free_nats)
    model = vae if preprocessing is None else Flow(preprocessing, vae)
    return model, Preprocessed(preprocessing, objective, metric=NegativeELBO.metric)
