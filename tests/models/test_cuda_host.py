"""Whole detectors with their CUDA kernels on the emulated device: the faces and losses that the CPU kernels give."""

import cv2
import pytest
import torch

from pyface import FaceDetector
from pyface.models import MTCNN, MTCNNConfig, create_model
from pyface.models.base import GroundTruth
from pyface.models.mtcnn import CropTruth, WithLandmarks
from pyface.models.zoo import model_info

pytestmark = pytest.mark.cuda_host

SINGLE_SHOT = ["densebox_lite", "s3fd_lite", "srn_lite", "ssh_lite"]
SIDE = 96  # the emulated device runs one thread at a time


def on_cuda_host(request, call):
    """What a call returns while ops run on the emulated device."""
    device = request.getfixturevalue("emulated_gpu")
    request.getfixturevalue("cuda_host")
    before = device.seed
    result = call()
    assert device.seed > before, "no kernel ran on the emulated device"
    return result


@pytest.fixture
def photo(astronaut):
    """The face of the example photo, 40 pixels wide."""
    image = cv2.cvtColor(cv2.imread(str(astronaut)), cv2.COLOR_BGR2RGB)[20:260, 100:340]
    return torch.from_numpy(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("name", [*SINGLE_SHOT, "mtcnn"])
def test_the_same_faces(name, photo, request):
    model = create_model(name)
    images = [photo, photo.flip(1)[: SIDE - 20]]
    expected = model.detect(images)
    assert all(len(faces.boxes) for faces in expected)
    for got, faces in zip(on_cuda_host(request, lambda: model.detect(images)), expected, strict=True):
        # letterbox adds pixels in another order than on the CPU.
        torch.testing.assert_close(got.boxes, faces.boxes, rtol=0, atol=2e-3)
        torch.testing.assert_close(got.scores, faces.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(got.landmarks, faces.landmarks, rtol=0, atol=2e-3)


def test_faces_that_stay_on_the_device(photo, request):
    """The detector's own part, such as the order of the faces, with `keep_on_device`."""
    detector = FaceDetector("s3fd_lite", device="cpu", size="native", keep_on_device=True)
    expected = FaceDetector("s3fd_lite", device="cpu", size="native")(photo.permute(2, 0, 1))
    found = on_cuda_host(request, lambda: detector(photo.permute(2, 0, 1)))
    assert len(found) == len(expected) == 1
    torch.testing.assert_close(found.cpu().boxes, expected.boxes, rtol=0, atol=2e-3)
    assert found.to_dict()["faces"][0]["score"] == pytest.approx(expected.scores[0].item(), abs=1e-4)


@pytest.mark.parametrize("name", SINGLE_SHOT)
def test_a_training_step_has_the_same_losses(name, request):
    row = model_info(name)
    torch.manual_seed(0)
    model = row.build(row.config).train()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    boxes = torch.tensor([[4.0, 4, 20, 24], [30, 30, 80, 90], [10, 50, 34, 80]])
    truth = GroundTruth(boxes, torch.tensor([0, 2, 3]), None, boxes[:, None, :2] + 5 * torch.rand(3, 5, 2))
    check_step(request, model, lambda: model.loss(model(pixels), truth))


@pytest.mark.parametrize("mining", ["classification", "all"])
@pytest.mark.parametrize(("name", "side"), [("pnet", 12), ("rnet", 24), ("onet", 48)])
def test_a_step_of_mtcnn_has_the_same_losses(name, side, mining, request):
    torch.manual_seed(0)
    model = MTCNN(MTCNNConfig(hard_mining=mining)).train()
    network = getattr(model, name) if name == "onet" else WithLandmarks(getattr(model, name))
    crops = torch.randn(24, 3, side, side)
    truth = CropTruth(torch.arange(24) % 4, torch.randn(24, 4), torch.rand(24, 5, 2))
    check_step(request, network, lambda: model.loss(name, network(crops), truth))


def check_step(request, model, terms_of):
    """Losses and gradients are the same with the kernels of the CPU and on the emulated device."""

    def step():
        model.zero_grad()
        torch.manual_seed(0)  # of dropout
        terms = terms_of()
        torch.stack(list(terms.values())).sum().backward()
        return [term.item() for term in terms.values()], [p.grad.clone() for p in model.parameters()]

    losses, gradients = step()
    emulated_losses, emulated_gradients = on_cuda_host(request, step)
    assert emulated_losses == losses
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    for got, gradient in zip(emulated_gradients, gradients, strict=True):
        torch.testing.assert_close(got, gradient)
