"""A part of a parameter says where it lies without being moved."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from sobre.parallel.division import Part


@pytest.fixture
def group() -> Iterator[None]:
    """The second of four processes, as it sees itself; the others are nowhere."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    yield
    dist.destroy_process_group()


def test_a_copy_on_the_host_of_a_part_on_a_gpu_stays_there_and_knows_its_place(group: None) -> None:
    mesh = DeviceMesh("cuda", torch.arange(4).view(2, 2), mesh_dim_names=("copies", "shards"), _init_backend=False)
    part = Part(mesh, (Replicate(), Shard(0)), torch.Size((6, 4)), torch.empty(3, 4, device="meta"))
    copied = torch.randn(3, 4)
    view = part.of_whole(copied)
    assert view.shape == (6, 4)
    assert view.to_local().data_ptr() == copied.data_ptr()
    assert view.device_mesh.device_type == "cpu"
    assert view.device_mesh.mesh.tolist() == [[0, 1], [2, 3]]
    assert list(view.__create_chunk_list__()[0].offsets) == [3, 0]
