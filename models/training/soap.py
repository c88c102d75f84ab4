"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv 2409.11321), for 1x1 convolutions.

Nearly all weights of the codecs are 1x1 convolutions, that is matrices of at most some hundred rows, so their
eigenbases cost little. Measured in docs/decisions.md: half of Adam's steps to the same figures.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nic.models.config import TrainConfig

__all__ = ["Soap", "matrices", "optimizers_of", "with_filter_apart"]

EPSILON = 1e-12
FILTER_RATE = 4.0  # learning rate of a post-filter, relative to that of the rest of its network


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of dense 1x1 convolutions."""
    return [p for p in model.parameters() if p.ndim == 4 and p.shape[2:] == (1, 1) and p.shape[1] > 1]


def with_filter_apart(network: nn.Module) -> list[tuple[nn.Module, float]]:
    """What a network consists of, and its post-filter if it has one, with their factors of the learning rate."""
    parts = dict(network.named_children())
    last = parts.pop("filter", None)
    return [(nn.ModuleList(parts.values()), 1.0), *([(last, FILTER_RATE)] if last else [])]


def optimizers_of(learning: list[tuple[nn.Module, float]], options: TrainConfig) -> list[torch.optim.Optimizer]:
    """SOAP for the 1x1 convolutions of modules, Adam for the rest, each module with its factor of the learning rate."""
    inner: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for module, factor in learning:
        dense = matrices(module)
        rest = [p for p in module.parameters() if all(p is not matrix for matrix in dense)]
        inner += [{"params": dense, "factor": factor}] if dense else []
        others.append({"params": rest, "factor": factor})
    rate = options.learning_rate
    return [Soap(inner, rate, options.renew), torch.optim.Adam(others, rate, fused=True)]


class Soap(torch.optim.Optimizer):
    """For weights [O, I, 1, 1] only; those of equal shape are updated together, as stacks [n, O, I].

    Square matrices are rotated on both sides, others on their smaller one. The first step only looks at the gradient.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter] | list[dict[str, Any]],
        learning_rate: float,
        renew: int = 10,
        decay: float = 0.95,
    ) -> None:
        """A basis is renewed every ``renew`` steps; ``decay`` is that of all running averages."""
        super().__init__(parameters, {"lr": learning_rate, "renew": renew, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes = sorted({tuple(p.shape[:2]) for p in group["params"]})
            for turn, shape in enumerate(shapes):
                members = [p for p in group["params"] if p.shape[:2] == shape]
                gradient = torch.stack([p.grad.flatten(1) for p in members])
                update = self.update(self.state[members[0]], gradient, group["decay"], group["renew"], turn)
                if update is not None:
                    torch._foreach_add_([p.flatten(1) for p in members], list(update), alpha=-group["lr"])

    def update(self, state: dict[str, Any], gradient: Tensor, decay: float, renew: int, turn: int) -> Tensor | None:
        """The direction [n, O, I] to go against, None at the first step; shapes take ``turn`` in renewing bases."""
        rows, columns = gradient.shape[1:]
        sides = [side for side, size in (("rows", rows), ("columns", columns)) if size == min(rows, columns)]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
            for side in sides:
                state[side] = covariance(gradient, side)
                state[f"{side}_basis"] = torch.linalg.eigh(state[side])[1].flip(2)
            return None
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - decay)
        rotated, mean = (rotate(x, state) for x in (gradient, state["mean"]))
        state["square"].lerp_(rotated.square(), 1 - decay)
        correction = 1 - decay ** state["step"]
        update = mean / correction / ((state["square"] / correction).sqrt() + EPSILON)
        update = rotate(update, state, back=True)
        for side in sides:
            state[side].lerp_(covariance(gradient, side), 1 - decay)
            if (state["step"] + turn) % renew == 0:
                renew_basis(state, side)
        return update


def covariance(gradient: Tensor, side: str) -> Tensor:
    return gradient @ gradient.mT if side == "rows" else gradient.mT @ gradient


def rotate(x: Tensor, state: dict[str, Tensor], back: bool = False) -> Tensor:
    """Matrices [n, O, I] into the eigenbases, or back."""
    if "rows_basis" in state:
        x = (state["rows_basis"] if back else state["rows_basis"].mT) @ x
    if "columns_basis" in state:
        x = x @ (state["columns_basis"].mT if back else state["columns_basis"])
    return x


def renew_basis(state: dict[str, Tensor], side: str) -> None:
    """One step of orthogonal iteration; the second moments follow the order of the eigenvalues."""
    basis, product = state[f"{side}_basis"], state[side] @ state[f"{side}_basis"]
    order = (basis * product).sum(dim=1).argsort(dim=1, descending=True)  # [n, size]
    state[f"{side}_basis"] = torch.linalg.qr(product.gather(2, order[:, None].expand_as(product)))[0]
    axis, index = (1, order[:, :, None]) if side == "rows" else (2, order[:, None])
    state["square"] = state["square"].gather(axis, index.expand_as(state["square"]))
