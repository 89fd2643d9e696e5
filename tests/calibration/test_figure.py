import pytest
from matplotlib import image

from raysim.calibration import figure
from tests.calibration.test_fit import TRUE, calibration_of


@pytest.mark.slow
@pytest.mark.parametrize("names", [["lenet"], ["vgg16", "torchvision/resnet18", "my_net:build"]])
def test_the_picture_has_a_panel_per_model(tmp_path, names):
    path = figure.draw(tmp_path / "calibration.png", [calibration_of(TRUE, name) for name in names])
    pixels = image.imread(path)
    assert pixels.shape[1] == pytest.approx(130 * max(6.0, figure.PANEL_INCHES * len(names)), abs=2)
    assert pixels.min() < 0.5
