"""What processes exchange in a training step, and in which memory."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from src.utils.data_parallel import clear_gradients, data_parallel
from src.utils.distributed import Ranks

TWO = Ranks(torch.device("cpu"), rank=0, world_size=2)


class WithBuffer(nn.Module):
    """Two layers and a buffer, as the networks hold their gradients in one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        self.register_buffer("features", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x * self.features)


@pytest.fixture
def group() -> Iterator[None]:
    """A real gloo group, of this process alone: what is set up is the same for any number."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_gradients_are_views_of_the_bucket_they_travel_in_and_stay_so():
    network = WithBuffer()
    wrapped = data_parallel(network, TWO)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        wrapped(torch.randn(2, 4)).sum().backward()
        storages = {p.grad.untyped_storage().data_ptr() for p in network.parameters()}
        assert len(storages) == 1
        optimizer.step()
        clear_gradients(wrapped, optimizer)
        assert all(not p.grad.any() for p in network.parameters())


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(("accumulation", "static"), [(1, True), (4, False)])
def test_the_graph_is_static_where_every_backward_pass_is_exchanged(accumulation, static):
    assert data_parallel(WithBuffer(), TWO, accumulation).static_graph is static


@pytest.mark.usefixtures("group")
def test_buffers_are_not_sent_in_a_step():
    wrapped = data_parallel(WithBuffer(), TWO)
    for _ in range(5):  # the first passes build the buckets and send their order
        wrapped(torch.randn(2, 4)).sum().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            wrapped(torch.randn(2, 4)).sum().backward()
    names = [event.key for event in profile.key_averages()]
    assert any("allreduce" in name for name in names), names
    assert not any("broadcast" in name for name in names), names
