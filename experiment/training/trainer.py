"""Model, optimiser, average and noise of one training, and how they step."""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core import DensityModel
from discrete import BatchNorm, set_batch_statistics
from experiment.batches import InTurn
from experiment.building.builder import Built, build
from experiment.config import Config, Train
from experiment.data import Dataset
from experiment.data.order import MOST_HELD, Order, drawn_order
from experiment.device import products_in_tf32
from experiment.distributed.first_look import Look, first_look
from experiment.distributed.parts import MovingBuffers, Parts
from experiment.distributed.ranks import ALONE, Ranks
from experiment.distributed.replicas import reduction, replicated
from experiment.distributed.sharding import (
    check_gradients,
    check_shardable,
    load_moments,
    load_whole,
    share_out,
    whole,
)
from experiment.errors import UserError
from experiment.run import parts_of
from experiment.sections.baselines import MixtureModel
from experiment.training.ema import EMA
from experiment.training.watch import NOT_FOUND, Watch, origin

VALIDATION_SEED = 20_000_000
STATISTICS_SEED = 30_000_000


@dataclass
class Progress:
    """Where a training stands: all that a checkpoint holds beside tensors.

    Attributes:
        step: optimiser steps done.
        best: best validation metric so far.
        best_step: the step it came from.
        stale: validations since then.
        seconds: training time so far.
        skipped: steps left out because their loss or gradient was not finite.
        finished: whether the last step is done or patience ran out.
    """

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    skipped: int = 0
    finished: bool = False


class Trainer:
    """Model, objective, optimiser, EMA and generators of one run, and how they step.

    Args:
        config: the experiment.
        dataset: its data.
        device: where it runs.
        ranks: the processes that train together; this one is alone where omitted.
        parts: of a step, where the config does not decide: those of the checkpoint that will be loaded.
        shard: leave each process a share of every parameter instead of a copy.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        *,
        device: torch.device,
        ranks: Ranks = ALONE,
        parts: int | None = None,
        shard: bool = False,
    ) -> None:
        self.config, self.dataset, self.device, self.ranks = config, dataset, device, ranks
        torch.manual_seed(config.seed)
        started = time.monotonic()
        self.train_rows, self.validation_rows = (
            rows if dataset.streamed else rows.to(device) for rows in (dataset.train, dataset.validation)
        )
        contexts = dataset.context("train"), dataset.context("validation")
        self.train_context, self.validation_context = (None if c is None else c.to(device) for c in contexts)
        self.built: Built = build(
            config,
            tuple(dataset.event_shape),
            bins=dataset.bins,
            classes=dataset.classes,
            rows=dataset.train,
            columns=dataset.columns,
            parts=parts_of(config, dataset, device=device),
            held_out=(self.validation_rows, self.validation_context),
        )
        self.built.objective.to(device)
        count = parts or (config.train.parts if config.train.parts > 1 else ranks.world)
        self.parts = Parts(count, seed=config.seed, device=device, ranks=ranks)
        self.progress, self.shard = Progress(), shard
        self._epoch = -1
        self._order: Order = torch.empty(0)
        self._compiled = False
        if shard and config.train.compile:
            raise UserError("a model that is shared out cannot be compiled: leave out train.compile or --shard.")
        if shard:
            check_shardable(self.built.objective, ranks)
            self.built.objective.cpu()
        self.look = self._first_look() if count > 1 and self._trained() else Look()
        self.ema = EMA(self.built, decay=config.train.ema_decay)
        for built in (self.built, self.ema.built) if shard else ():
            share_out(built.objective, self.look.units, device=device)
        moving = [self.built.objective.get_buffer(name) for name in self.look.moving]
        self.buffers = MovingBuffers(moving, ranks=ranks)
        self.parameters = self._trained()
        none = [nn.Parameter(torch.empty(0))]  # of a model that was fitted as it was built
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        self.optimizer = kinds[config.train.optimizer](
            self.parameters or none, lr=config.train.learning_rate, weight_decay=config.train.weight_decay, fused=True
        )
        self.watch = Watch(device, most=config.train.bad_steps)
        self.synchronised: nn.Module = self.built.objective
        if self.parameters and not shard:
            self.synchronised = replicated(self.built.objective, self.look.reached, ranks, device)
        self.progress.seconds = time.monotonic() - started

    def step(self) -> tuple[Tensor, Tensor]:
        """One optimiser step, left out where it is not finite; the loss and the gradient norm stay on the device."""
        train = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.step, train)
        self.built.objective.train()
        self.optimizer.zero_grad(set_to_none=True)
        with products_in_tf32(allowed=train.tf32):
            loss = self._gradients()
        norm = nn.utils.clip_grad_norm_(self.parameters, train.gradient_clip or math.inf)
        if self.shard:
            check_gradients(self.built.objective, self.look.reached)
            norm = whole(norm).to(loss)
        # The fused optimiser leaves parameters and moments alone where this is 1: the host need not know.
        self.optimizer.found_inf = (~(torch.isfinite(loss) & torch.isfinite(norm))).float()
        self.optimizer.step()
        self.ema.update(self.built)
        self.progress.step += 1
        if self.config.train.compile and not self._compiled:
            # The first step lets data set what starts from them, of which no graph knows.
            self.built.objective.compile(fullgraph=True)
            self._compiled = True
        return loss, norm

    def _gradients(self) -> Tensor:
        """Puts the mean gradient of all parts into the parameters of every process; their mean loss."""
        mine, losses = self.parts.mine, list[Tensor]()
        for part in self.buffers.each(mine):
            generator = self.parts.noise(part, step=self.progress.step)
            with reduction(self.synchronised, now=part == mine[-1]):
                loss = self._loss(self.synchronised, part, generator)
                loss = loss if len(mine) == 1 else loss / len(mine)
                loss.backward()
            losses.append(loss.detach())
        return self.ranks.mean([sum(losses[1:], start=losses[0])])[0]

    def _loss(self, objective: nn.Module, part: int, generator: torch.Generator) -> Tensor:
        rows, context = self._batch(self.progress.step, part)
        place = generator.device
        try:
            return objective(rows.to(place), None if context is None else context.to(place), generator=generator)
        except ValueError as error:
            raise UserError(f"training cannot step on batches of {len(rows)} rows: {error}") from error
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise UserError(
                f"torch.compile cannot make one graph of a step, which no step that draws noise is: "
                f"{str(error).splitlines()[0]}; leave out train.compile."
            ) from error

    def _as_it_comes(self) -> AbstractContextManager[None]:
        """Where the objective is run layer by layer, compiled or not."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def _first_look(self) -> Look:
        """Lets the first batch set what depends on data, alike in every process, where the model is."""
        objective = self.built.objective.train()
        generator = torch.Generator(next(objective.parameters()).device).manual_seed(self.config.seed)
        return first_look(objective, partial(self._loss, objective, 0, generator))

    def _trained(self) -> list[nn.Parameter]:
        # The parts of a mixture have been trained.
        trained = () if isinstance(self.config.model, MixtureModel) else self.built.model.parameters()
        return [p for p in trained if p.requires_grad]

    def validate(self) -> float:
        """Mean objective of the averaged weights on the validation rows, with the same noise every time.

        Batch normalization takes its statistics from the whole training set for it, and keeps them for the checkpoint.
        The first process does it for all; where none holds the whole model all do, and the first one's value counts.
        """
        if not self.shard:
            return self.ranks.agreed(self._validate)
        value = self._validate()
        return self.ranks.agreed(lambda: value)

    @torch.no_grad()
    def _validate(self) -> float:
        model = self.ema.built.model
        normalized = any(isinstance(module, BatchNorm) for module in model.modules())
        if normalized and self.parameters and isinstance(model, DensityModel):
            noise = torch.Generator(self.device).manual_seed(STATISTICS_SEED)
            batches = InTurn(self.train_rows, self.train_context, self.device)
            set_batch_statistics(model, batches, generator=noise)
        objective = self.ema.built.objective.eval()
        generator = torch.Generator(self.device).manual_seed(VALIDATION_SEED)
        draws = self.config.train.validation_draws
        batches = InTurn(self.validation_rows, self.validation_context, self.device, draws=draws)
        total = sum(objective(*batch, generator=generator) * len(batch[0]) for batch in batches)
        return float(total / (draws * len(self.validation_rows)))

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "config_sha256_16": self.config.digest,
            "progress": vars(self.progress).copy(),
            "model": self.weights(self.built),
            "ema": self.weights(self.ema.built),
            "ema_updates": self.ema.updates,
            "objective": self._objective_state(),
            "watch": self.watch.state(),
            "optimizer": whole(self.optimizer.state_dict()) if self.shard else self.optimizer.state_dict(),
            "generator": self.parts.state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def weights(self, built: Built) -> dict[str, Tensor]:
        """The whole tensors of a model, in every process."""
        return whole(built.model.state_dict()) if self.shard else built.model.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state."""
        self.progress = Progress(**state["progress"])
        load_whole(self.built.model, state["model"])
        load_whole(self.ema.built.model, state["ema"])
        self.ema.updates = state["ema_updates"]
        # What the checkpoint does not name comes from the model, which has just been loaded, or is as it was built.
        objective = self.built.objective
        objective.load_state_dict({**objective.state_dict(), **state.get("objective", {})})
        if "watch" in state:  # not in checkpoints of before
            self.watch.load_state(state["watch"])
        load_moments(self.optimizer, state["optimizer"])
        self.parts.load_state(torch.atleast_2d(state["generator"]))  # a single one where there was a single part
        torch.set_rng_state(state["torch_rng"].cpu())
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)

    def _objective_state(self) -> dict[str, Tensor]:
        """What the objective keeps beside the model, such as a law of times that it has learned."""
        model = {id(value) for value in self.built.model.state_dict(keep_vars=True).values()}
        own = self.built.objective.state_dict(keep_vars=True).items()
        return {name: value.detach() for name, value in own if id(value) not in model}

    def trace(self, step: int) -> str:
        """Where the first value that is not finite arose in a step that was left out, the parameters being as then."""
        noise = torch.Generator(self.device).manual_seed(self.config.seed)
        rows, contexts = zip(*(self._batch(step - 1, part) for part in range(self.parts.count)), strict=True)
        context = None if self.train_context is None else torch.cat(contexts)
        with self._as_it_comes():
            return origin(self.built.objective.train(), torch.cat(rows), context, generator=noise)

    def trace_validation(self) -> str:
        """As `trace`, in validation."""
        generator = torch.Generator(self.device).manual_seed(VALIDATION_SEED)
        objective = self.ema.built.objective.eval()
        for rows, *context in InTurn(self.validation_rows, self.validation_context, self.device):
            found = origin(objective, rows, context[0] if context else None, generator=generator)
            if found != NOT_FOUND:
                return found
        return NOT_FOUND

    def _batch(self, step: int, part: int = 0) -> tuple[Tensor, Tensor | None]:
        """Rows of a part of a step, counted from 0, and their context; an epoch's order depends on seed and epoch."""
        size = min(self.config.train.batch_size, len(self.train_rows))
        epoch, index = divmod(step * self.parts.count + part, len(self.train_rows) // size)
        if epoch != self._epoch:
            seed = (self.config.seed + 1_000_003 * (epoch + 1)) % 2**63
            most_held = MOST_HELD if self.dataset.streamed else math.inf
            rows = self.train_rows
            self._order = drawn_order(len(rows), seed, most_held=most_held, device=rows.device)
            self._epoch = epoch
        chosen = self._order[index * size : (index + 1) * size]
        context = None if self.train_context is None else self.train_context[chosen]
        return self.train_rows[chosen].to(self.device), context


def learning_rate(step: int, train: Train) -> float:
    """Linear warm-up, then constant, or a half cosine that would reach zero after the last step.

    Example:
        >>> [round(learning_rate(step, Train(steps=4, learning_rate=1.0)), 3) for step in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / (train.warmup_steps + 1)
    if train.schedule == "constant":
        return train.learning_rate
    share = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
