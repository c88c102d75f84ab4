"""The optimizer of the matrices."""

import copy

import pytest
import torch
from torch import nn

from nic.models.training.soap import Soap, matrices


def regression(optimizer: str, steps: int) -> float:
    """The loss after some steps of learning a linear map from inputs of very different, correlated scales."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 24, 1, 1) * torch.logspace(0, -3, 24)[:, None, None]
    inputs = nn.functional.conv2d(inputs, torch.linalg.qr(torch.randn(24, 24))[0][:, :, None, None])
    wanted = nn.functional.conv2d(inputs, torch.randn(16, 24, 1, 1) * 3)
    model = nn.Conv2d(24, 16, 1, bias=False)
    made = {"soap": Soap(matrices(model), 0.03), "adam": torch.optim.Adam(model.parameters(), 0.03)}[optimizer]
    for _ in range(steps):
        loss = (model(inputs) - wanted).square().mean()
        model.zero_grad()
        loss.backward()
        made.step()
    return loss.item()


def test_ill_conditioned_inputs_need_fewer_steps_than_with_adam() -> None:
    assert regression("soap", 300) < 0.5 * regression("adam", 300)


def test_only_dense_pointwise_convolutions_are_matrices() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(1, 4, 1), nn.Linear(4, 4))
    assert [id(p) for p in matrices(model)] == [id(model[0].weight)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_reloaded_state_goes_on_alike(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 1)).to(memory_format=layout)
    inputs = torch.randn(4, 8, 5, 5)

    def step(model: nn.Module, optimizer: Soap) -> None:
        model.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    optimizer = Soap(matrices(model), 1e-2, renew=2)
    for _ in range(5):
        step(model, optimizer)
    twin = copy.deepcopy(model)
    resumed = Soap(matrices(twin), 1e-2, renew=2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = twin[2].weight.clone()
    for _ in range(5):
        step(model, optimizer)
        step(twin, resumed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert not torch.equal(before, twin[2].weight)
