"""Fine-tuning between adversarial rounds: single steps on a stream of samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from posegen_ray.config import FineTuneConfig
from posegen_ray.errors import CheckpointError
from posegen_ray.estimators.augment import labels_of
from posegen_ray.estimators.base import PoseEstimator, computing_in
from posegen_ray.estimators.finetune import ADAM_BETAS
from posegen_ray.estimators.supervision import check_samples, estimate_loss, open_for_training
from posegen_ray.records import Samples

log = logging.getLogger(__name__)

# averages gradients over processes, in place
ReduceFn = Callable[[list[Tensor]], None]


class FineTuner:
    """Trains the late part of an estimator, in place, one batch of a stream at a time.

    Between steps the parameters are frozen, so that gradients to images stay cheap. Everything
    needed to go on lies in `state_dict()`, flat tensors only: weights, Adam's moments, counters.

    Args:
        estimator: trained in place.
        config: online_cut, online_learning_rate, losses, max_gradient_norm. BatchNorm statistics
            stay frozen.
        reduce: averages the gradients over processes; without it they are used as they are.
        body: of the people that the samples show; the shape loss needs "smpl".
        accumulate: in so many parts a batch passes the estimator. All losses are means over the
            samples and BatchNorm is frozen: the gradient is the whole batch's.
        precision: of the estimator; see `computing_in`. Losses and weights stay fp32.
    """

    def __init__(
        self,
        estimator: PoseEstimator,
        config: FineTuneConfig,
        reduce: ReduceFn | None = None,
        body: str = "",
        accumulate: int = 1,
        precision: str = "fp32",
    ) -> None:
        self.estimator = estimator
        self.config = config
        self.body = body
        self.cut = config.online_cut
        self.reduce = reduce
        self.accumulate = accumulate
        self.precision = precision
        self.steps = 0
        self.skipped = 0  # steps whose gradient was not finite
        self._parameters = estimator.tail_parameters(self.cut)
        self._optimizer = torch.optim.Adam(
            self._parameters, config.online_learning_rate, betas=ADAM_BETAS, fused=True
        )
        for parameter in self._parameters:  # so that the state has its full shape from the start
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, samples: Samples) -> float:
        """One update; the loss before it.

        A gradient that is not finite (in any process) changes nothing and is counted in `skipped`.

        Raises:
            DataError: the samples cannot train this estimator.
        """
        check_samples(self.estimator, samples)
        total = 0.0
        with open_for_training(self.estimator, self._parameters):
            size = math.ceil(len(samples) / self.accumulate)
            for first in range(0, len(samples), size):
                part = samples[first : first + size]
                loss = self._loss(part) * (len(part) / len(samples))
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            if self.reduce is not None:
                self.reduce([p.grad for p in self._parameters if p.grad is not None])
            norm = nn.utils.clip_grad_norm_(self._parameters, self.config.max_gradient_norm)
            if torch.isfinite(norm):
                self._optimizer.step()
            else:
                self.skipped += 1
                log.warning("Estimator update %d skipped: gradient norm %s.", self.steps, norm)
        self.steps += 1
        return total

    def _loss(self, samples: Samples) -> Tensor:  # []
        device = self._parameters[0].device
        images = samples.images.to(device).float() / 255
        labels = labels_of(samples).to(device)
        with computing_in(self.precision, device):
            with torch.no_grad():
                features = self.estimator.stem(images, self.cut)
            estimate = self.estimator.head(features, self.cut).full()
        return estimate_loss(self.estimator, estimate, labels, self.config.losses, self.body)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all state, as flat tensors."""
        state = {"counters": torch.tensor([self.steps, self.skipped])}
        for number, parameter in enumerate(self._parameters):
            state[f"weight.{number}"] = parameter.detach().clone()
            for name, value in self._optimizer.state[parameter].items():
                state[f"adam.{number}.{name}"] = value.detach().clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores weights, moments and counters.

        Raises:
            CheckpointError: the state is not that of this estimator and cut.
        """
        mine = {name: value.shape for name, value in self.state_dict().items()}
        theirs = {name: value.shape for name, value in state.items()}
        if mine != theirs:
            odd = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
            raise CheckpointError(
                f"The estimator's saved training state does not fit {self.estimator.name} at the "
                f"cut {self.cut!r}: {len(odd)} entries differ, the first is {odd[0]}.",
                "Resume with the estimator and online_cut that the run was started with.",
            )
        self.steps, self.skipped = (int(n) for n in state["counters"])
        with torch.no_grad():
            for number, parameter in enumerate(self._parameters):
                parameter.copy_(state[f"weight.{number}"])
                for name, value in self._optimizer.state[parameter].items():
                    value.copy_(state[f"adam.{number}.{name}"])
