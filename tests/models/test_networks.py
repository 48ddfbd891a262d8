"""What the papers' networks with anchors have in common: any size, dtype and memory format, export, compilation."""

import copy

import pytest
import torch

from pyface.models import create_model


@pytest.fixture(scope="module", params=["s3fd_vgg16", "ssh_vgg16", "srn_resnet50"])
def model(request):
    torch.manual_seed(0)
    return create_model(request.param, weights=None)


def tensors(maps):
    """All tensors of all levels, with their places."""
    return {
        (level, field): value
        for level, level_maps in enumerate(maps)
        for field, value in level_maps._asdict().items()
        if value is not None
    }


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (97, 130)])
def test_any_size(model, size):
    with torch.no_grad():
        maps = model(torch.randn(2, 3, *size))
    for (level, _), value in tensors(maps).items():
        assert value.shape[2:] == tuple(-(-side // model.levels[level].stride) for side in size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_channels_last(model, dtype):
    x = 50 * torch.randn(2, 3, 47, 66, generator=torch.Generator().manual_seed(0))
    other = copy.deepcopy(model).to(dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected, found = tensors(model(x)), tensors(other(x.to(dtype).to(memory_format=torch.channels_last)))
    assert found.keys() == expected.keys()
    close = 1e-4 if dtype == torch.float32 else 0.1
    for place, value in found.items():
        assert value.dtype == dtype
        wanted = expected[place]
        torch.testing.assert_close(value.float(), wanted, rtol=close, atol=close * float(wanted.abs().max()))


def test_every_image_for_itself(model):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together, alone = tensors(model(x)), tensors(model(x[1:]))
    for place, value in alone.items():
        torch.testing.assert_close(together[place][1:], value, rtol=1e-4, atol=1e-4)


def test_export_and_compile(model):
    """SSH's fusion crops at this size: conv4_3 has 9 rows, conv5_3 has 5."""
    x = torch.randn(1, 3, 72, 48)
    with torch.no_grad():
        expected = tensors(model(x))
        exported = torch.export.export(model, (x,)).module()(x)
        compiled = torch.compile(model, fullgraph=True, backend="eager")(x)
    for maps in (exported, compiled):
        torch.testing.assert_close(tensors(maps), expected)
