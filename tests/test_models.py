import pytest
import torch

from raysim.errors import SettingError
from raysim.models import zoo

SHAPES = {"cnn": (1, 8, 8), "lenet": (1, 28, 28), "mlp": (3, 5, 5), "vgg16": (3, 32, 32), "resnet32": (1, 28, 28)}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_models_map_images_to_class_scores(name: str) -> None:
    model = zoo.build(name, {}, SHAPES[name], 7, seed=0)
    assert model(torch.randn(3, *SHAPES[name])).shape == (3, 7)


def test_weights_come_from_the_seed_and_the_generator_is_put_back() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (zoo.build("mlp", {}, (1, 4, 4), 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[1].weight, same[1].weight)
    assert not torch.equal(one[1].weight, other[1].weight)


def test_a_linear_model_is_an_mlp_without_hidden_layers() -> None:
    assert len(list(zoo.build("mlp", {"hidden": []}, (1, 4, 4), 3, seed=0).parameters())) == 2


@pytest.mark.parametrize(
    ("name", "options", "shape", "parts"),
    [
        ("cnm", {}, (1, 8, 8), ["model.name='cnm'", "known: cnn"]),
        ("cnn", {"hiden": 3}, (1, 8, 8), ["model.options.hiden=3", "takes: hidden"]),
        ("cnn", {"channels": [3]}, (1, 8, 8), ["model.options={'channels': [3]}"]),
        ("lenet", {"hidden": 3}, (1, 28, 28), ["model.options.hidden=3", "none"]),
        ("vgg16", {}, (1, 8, 8), ["model.name='vgg16'", "32 x 32", "8 x 8"]),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, options: dict, shape: tuple, parts: list[str]) -> None:
    with pytest.raises(SettingError) as error:
        zoo.build(name, options, shape, 10, seed=0)
    assert all(part in str(error.value) for part in parts), str(error.value)
