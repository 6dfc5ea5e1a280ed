"""Linear and convolution layers whose norm as a map between vectors or images is bounded."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

EXACT_SIZE = 16  # smaller side of a matrix up to which its singular vectors cost less than steps towards them
KRYLOV = 24  # Lanczos steps outside training: from a random start they miss 1e-3 of σ at most, 1e-5 as a rule


class SpectralLayer(nn.Module):
    """W̃ = W / max(1, σ/c), so that ‖W̃‖₂ ≤ c, with σ = ‖W‖₂ of a matrix or of a convolution as a map of images.

    σ = uᵀ W v with u, v singular vectors held constant, so that its gradient dσ = uᵀ dW v is exact. They are those of
    the factorized matrix where its smaller side is 16 or less and, for every matrix, outside training. Else v goes on
    from a buffer: by `steps` power steps in training, which the buffer follows, by 24 Lanczos steps in evaluation,
    which it does not. They are taken with W over its largest entry, so that no norm of W is too large.

    References:
        Miyato et al., "Spectral normalization for generative adversarial networks", 2018, eq. 8 and algorithm 1; for
        convolutions and c, Behrmann et al., "Invertible residual networks", 2019, section 2.1 and eq. 2.

    Checked by tests/core/test_lipschitz.py.

    Args:
        input_shape: (features,) or (channels, height, width) of what W is applied to.
        out: features or channels of the result.
        kernel: side of a convolution's kernel, odd; zeros stand around the image.
        bound: c > 0.
        steps: power steps a call in training.

    Raises:
        ValueError: a bound that is not positive, no step, or an even kernel.

    Note:
        Iterations come from below: in evaluation a convolution may exceed c by what they miss, less than 1e-3 of it. A
        second derivative in W leaves out how u and v turn.
    """

    v: Tensor

    def __init__(
        self, input_shape: Sequence[int], out: int, *, kernel: int = 1, bound: float = 1.0, steps: int = 2
    ) -> None:
        super().__init__()
        if not bound > 0 or steps < 1 or kernel % 2 == 0:
            raise ValueError(
                f"SpectralLayer needs a positive bound, 1 step or more and an odd kernel, but has {bound=}, {steps=} "
                f"and {kernel=}."
            )
        self.bound, self.steps = bound, steps
        fan_in = input_shape[0]
        image = len(input_shape) == 3
        self.weight = nn.Parameter(torch.empty(out, fan_in, *((kernel, kernel) if image else ())))
        self.bias = nn.Parameter(torch.empty(out))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        limit = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.bias, -limit, limit)
        self.is_matrix = not image or kernel == 1
        v = torch.randn(fan_in) if self.is_matrix else torch.randn(1, *input_shape)
        self.register_buffer("v", _krylov_vector(_rescaled(self._operator()), _unit(v)))

    def normalized(self) -> Tensor:
        """W̃, like W."""
        return self.weight / (self.spectral_norm() / self.bound).clamp(min=1).to(self.weight.dtype)

    def spectral_norm(self) -> Float[Tensor, ""]:
        """σ, differentiable in W; in training it moves the buffer."""
        operator = self._operator()
        with torch.no_grad():
            scaled = _rescaled(operator)
            v = self._right_vector(scaled)
            u = _unit(times(scaled, v))
        return (u * times(operator, v)).sum()

    def _operator(self) -> Tensor:
        """W as a matrix, or as the kernel that it is, in single precision or better."""
        weight = self.weight.flatten(1) if self.is_matrix else self.weight
        return weight.to(torch.promote_types(weight.dtype, torch.float32))

    def _right_vector(self, operator: Tensor) -> Tensor:
        if self.is_matrix and (not self.training or min(operator.shape) <= EXACT_SIZE):
            return _first_right_vector(operator)
        v = self.v.to(operator.dtype)
        if not self.training:
            return _krylov_vector(operator, v)
        v = _power_steps(operator, v, self.steps)
        self.v.copy_(v)
        return v


def padding(weight: Tensor) -> int:
    """Zeros on each side of an image that keep its size."""
    return weight.shape[-1] // 2


def times(weight: Tensor, x: Tensor, *, transposed: bool = False) -> Tensor:
    """W x or Wᵀ x of one vector, or of one image `(1, channels, height, width)`."""
    if weight.ndim == 2:
        return (weight.mT if transposed else weight) @ x
    return (F.conv_transpose2d if transposed else F.conv2d)(x, weight, padding=padding(weight))


def _unit(x: Tensor) -> Tensor:
    """x/‖x‖ of one vector; 0 of 0."""
    return x / torch.linalg.vector_norm(x).clamp(min=torch.finfo(x.dtype).tiny)


def _rescaled(operator: Tensor) -> Tensor:
    """W over its largest entry, without gradient."""
    operator = operator.detach()
    return operator / operator.abs().amax().clamp(min=torch.finfo(operator.dtype).tiny)


def _power_steps(operator: Tensor, v: Tensor, steps: int) -> Tensor:
    """v ← WᵀW v/‖WᵀW v‖, each factor scaled on its own; v stays where W v is 0."""
    for _ in range(steps):
        new = _unit(times(operator, _unit(times(operator, v)), transposed=True))
        v = torch.where(new.any(), new, v)
    return v


def _krylov_vector(operator: Tensor, v: Tensor) -> Tensor:
    """The vector of largest ‖W v‖/‖v‖ in the span of v, WᵀW v, (WᵀW)² v, ...: Lanczos, made orthogonal twice over."""
    basis = v.reshape(1, -1)
    for _ in range(min(KRYLOV, v.numel() - 1)):
        w = _unit(times(operator, _unit(times(operator, v)), transposed=True)).flatten()
        for _ in range(2):
            w = w - basis.mT @ (basis @ w)
        # What is left of a span that is exhausted is rounding: 0 stands for it.
        w = torch.where(torch.linalg.vector_norm(w) > 100 * torch.finfo(w.dtype).eps, _unit(w), 0)
        basis, v = torch.cat([basis, w[None]]), w.reshape(v.shape)
    images = torch.cat([times(operator, b.reshape(v.shape)).reshape(1, -1) for b in basis])
    _, vectors = torch.linalg.eigh(images @ images.mT)
    return _unit(vectors[:, -1] @ basis).reshape(v.shape)


def _first_right_vector(matrix: Tensor) -> Tensor:
    """The right singular vector of the largest singular value, from the eigenvectors of the smaller Gram matrix."""
    wide = matrix.shape[0] <= matrix.shape[1]
    _, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
    return _unit(matrix.mT @ vectors[:, -1]) if wide else vectors[:, -1]
