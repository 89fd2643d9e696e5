import sys

import pytest
import torch

from raysim.core.errors import SettingError
from raysim.models import zoo
from raysim.simulation.build import build_scenario
from tests.conftest import INPUTS, tiny_settings


@pytest.mark.parametrize("name", INPUTS)
def test_models_map_images_to_class_scores(name: str) -> None:
    for channels in (1, 3):
        shape = (channels, *INPUTS[name][1:])
        outputs = zoo.build(name, {}, zoo.DataForm(shape, 7), seed=0)(torch.randn(3, *shape))
        assert outputs.shape == ((3, 7, *shape[1:]) if name == "unet" else (3, 7))


def test_every_model_reads_something() -> None:
    assert {name for name, entry in zoo.MODELS.items() if entry.inputs in ("images", "any floats")} == set(INPUTS)


@pytest.mark.parametrize("task", ["classification", "next-token"])
@pytest.mark.parametrize("name", ["char-lstm", "gru", "transformer"])
def test_models_map_token_ids_to_scores_of_a_row_or_of_each_position(name: str, task: str) -> None:
    model = zoo.build(name, {}, zoo.DataForm((12,), 7, vocabulary=7, task=task), seed=0).eval()
    tokens = torch.randint(7, (3, 12))
    outputs = model(tokens)
    assert outputs.shape == ((3, 12, 7) if task == "next-token" else (3, 7))
    if task == "next-token":  # no position reads those behind it
        torch.testing.assert_close(model(tokens[:, :5]), outputs[:, :5])


def test_recurrent_networks_map_series_to_scores() -> None:
    for name in ("char-lstm", "gru"):
        assert zoo.build(name, {}, zoo.DataForm((2, 12), 3), seed=0)(torch.randn(5, 2, 12)).shape == (5, 3)


def test_char_lstm_has_the_size_of_leafs() -> None:
    """8 x 80 of the embedding; 4 x 256 x (8 + 256 + 2) and 4 x 256 x (256 + 256 + 2); 257 x 80."""
    model = zoo.build("char-lstm", {}, zoo.DataForm((80,), 80, vocabulary=80), seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 640 + 272_384 + 526_336 + 20_560 == 819_920


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        (
            "cnn",
            zoo.DataForm((12,), 7, vocabulary=7),
            "reads images, and the data's inputs are token ids of 12; .*gru",
        ),
        ("transformer", zoo.DataForm((3, 8, 8), 7), "reads token ids, and the data's inputs are images of 3 x 8 x 8"),
        (
            "gru",
            zoo.DataForm((5,), 7),
            "reads token ids or series, and the data's inputs are vectors of 5; .*mlp",
        ),
        ("mlp", zoo.DataForm((12,), 7, vocabulary=7), "reads any floats, and the data's inputs are token ids of 12"),
        ("torchvision/resnet18", zoo.DataForm((12,), 7), "reads images, and the data's inputs are vectors of 12"),
    ],
)
def test_a_model_that_does_not_read_the_inputs_is_refused(name: str, form: zoo.DataForm, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        zoo.build(name, {}, form, seed=0)


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(SettingError, match="width=10 is no multiple of heads=4"):
        zoo.build("transformer", {"width": 10}, zoo.DataForm((12,), 7, vocabulary=7), seed=0)


def test_weights_come_from_the_seed_and_the_generator_is_put_back() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (zoo.build("mlp", {}, zoo.DataForm((1, 4, 4), 3), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[1].weight, same[1].weight)
    assert not torch.equal(one[1].weight, other[1].weight)


def test_a_linear_model_is_an_mlp_without_hidden_layers() -> None:
    assert len(list(zoo.build("mlp", {"hidden": []}, zoo.DataForm((1, 4, 4), 3), seed=0).parameters())) == 2


@pytest.mark.parametrize(
    ("name", "options", "shape", "parts"),
    [
        ("cnm", {}, (1, 8, 8), ["model.name='cnm'", "known: cnn", "torchvision/resnet18", "my_pkg.net:build"]),
        ("cnn", {"hiden": 3}, (1, 8, 8), ["model.options.hiden=3", "takes: hidden"]),
        ("cnn", {"channels": [3]}, (1, 8, 8), ["model.options={'channels': [3]}"]),
        ("lenet", {"hidden": 3}, (1, 28, 28), ["model.options.hidden=3", "none"]),
        (
            "convnet",
            {"norm": "foo"},
            (3, 32, 32),
            ["model.options.norm='foo' is not allowed; allowed: none, group, batch"],
        ),
        (
            "convnet",
            {"norm": None},
            (3, 32, 32),
            ["model.options.norm=None is not allowed; allowed: none, batch, group"],
        ),
        ("resnet", {"depth": 9}, (3, 32, 32), ["model.options.depth=9 is not allowed; allowed: 8, 20, 32, 56"]),
        ("resnet", {"depth": 20.0}, (3, 32, 32), ["model.options.depth=20.0 is not allowed; allowed: 8, 20, 32, 56"]),
        ("two-cnn", {}, (1, 5, 24), ["model.name='two-cnn'", "at least 6 x 6 pixels", "have 5 x 24"]),
        ("convnet", {"channels": []}, (3, 32, 32), ["model.name='convnet'", "channels needs at least one width"]),
        ("convnet", {}, (1, 8, 4), ["model.name='convnet'", "for 3 of them", "at least 8 x 8 pixels", "have 8 x 4"]),
        ("vgg16", {}, (1, 8, 8), ["model.name='vgg16'", "32 x 32", "8 x 8"]),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, options: dict, shape: tuple, parts: list[str]) -> None:
    with pytest.raises(SettingError) as error:
        zoo.build(name, options, zoo.DataForm(shape, 10), seed=0)
    assert all(part in str(error.value) for part in parts), str(error.value)


USERS_CODE = """
from torch import nn

def build(input_shape, num_classes, width=4, **others):
    inputs = input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.Linear(width, num_classes))

class Fixed(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, classes))

def no_module():
    return "net"

def breaks(num_classes):
    raise RuntimeError("no such thing")

constant = 3
"""


@pytest.fixture
def users_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_net_xyz.py").write_text(USERS_CODE, encoding="utf-8")
    yield tmp_path
    sys.modules.pop("my_net_xyz", None)


def test_a_users_own_model_is_given_what_its_signature_names(users_folder) -> None:
    model = zoo.build("my_net_xyz:build", {"width": 6}, zoo.DataForm((1, 8, 8), 10), seed=0)
    assert [layer.weight.shape for layer in model[1:]] == [(6, 64), (10, 6)]
    same, other = (
        zoo.build("my_net_xyz:build", {"width": 6}, zoo.DataForm((1, 8, 8), 10), seed=seed) for seed in (0, 1)
    )
    assert torch.equal(model[1].weight, same[1].weight)
    assert not torch.equal(model[1].weight, other[1].weight)
    assert zoo.build("my_net_xyz:Fixed", {"classes": 10}, zoo.DataForm((1, 8, 8), 10), seed=0)[1].out_features == 10
    assert zoo.kept_whole("my_net_xyz:build") == []


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Fixed", {}, r"model\.options=\{\} is not allowed for .* missing a required argument: 'classes'"),
        ("Fixed", {"classes": 7}, r"two inputs give \(2, 7\) instead of \(2, 10\)"),
        ("no_module", {}, r"gives a str; allowed: a torch\.nn\.Module"),
        ("breaks", {}, r"fails: RuntimeError: no such thing \(.*my_net_xyz\.py:\d+, in breaks\)"),
        ("constant", {}, "is a int; allowed: a function or class"),
        ("biuld", {}, "has no 'biuld'; nearest: build"),
    ],
)
def test_a_users_model_that_does_not_fit_is_refused(users_folder, name, options, said) -> None:
    with pytest.raises(SettingError, match=said):
        zoo.build(f"my_net_xyz:{name}", options, zoo.DataForm((1, 8, 8), 10), seed=0)


def test_layers_of_a_users_model_are_kept_whole_by_name(users_folder) -> None:
    settings = ("model.name=my_net_xyz:build", "model.options={}")
    assert len(build_scenario(tiny_settings(*settings)).workload.plan.groups) == 1
    kept = build_scenario(tiny_settings(*settings, "model.keep_whole=['1']")).workload.plan
    assert len(kept.groups) == 0
    with pytest.raises(SettingError, match=r"model\.keep_whole='9' matches no layer"):
        build_scenario(tiny_settings(*settings, "model.keep_whole=['9']"))


def test_the_network_with_dropout_has_the_parameters_of_the_reference_workload() -> None:
    model = zoo.build("cnn-dropout", {}, zoo.DataForm((3, 32, 32), 10), 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_626_442
    assert zoo.build("cnn-dropout", {}, zoo.DataForm((1, 28, 28), 62), 0)(torch.zeros(2, 1, 28, 28)).shape == (2, 62)


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("convnet", {}, 300_186),
        ("convnet", {"norm": "batch"}, 300_354),
        ("convnet", {"norm": "group"}, 300_354),
        ("convnet", {"channels": [8], "hidden": 20}, 41_414),
        ("resnet", {"depth": 8}, 78_042),
        ("resnet", {}, 272_474),
        ("resnet", {"depth": 32}, 466_906),
        ("resnet", {"depth": 56}, 855_770),
    ],
)
def test_networks_have_the_parameters_of_their_description(name: str, options: dict, parameters: int) -> None:
    model = zoo.build(name, options, zoo.DataForm((3, 32, 32), 10), seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_normalization_is_an_option_of_a_convnet() -> None:
    kinds = {"none": set(), "batch": {torch.nn.BatchNorm2d}, "group": {torch.nn.GroupNorm}}
    for norm, kind in kinds.items():
        model = zoo.build("convnet", {"norm": norm}, zoo.DataForm((3, 32, 32), 10), seed=0)
        assert {type(layer) for layer in model if "Norm" in type(layer).__name__} == kind
        assert all((layer.bias is None) == (norm != "none") for layer in model if isinstance(layer, torch.nn.Conv2d))


@pytest.mark.parametrize(
    ("name", "classes", "parameters"), [("two-cnn", 10, 1_663_370), ("femnist-cnn", 62, 6_603_710)]
)
def test_networks_of_autoflip_have_the_parameters_of_their_sources(name: str, classes: int, parameters: int) -> None:
    model = zoo.build(name, {}, zoo.DataForm((1, 28, 28), classes), seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert zoo.build(name, {}, zoo.DataForm((3, 6, 9), classes), seed=0)(torch.zeros(2, 3, 6, 9)).shape == (
        2,
        classes,
    )


def test_resnet32_is_the_name_of_depth_32() -> None:
    named, of_depth = (
        zoo.build(*each, zoo.DataForm((3, 32, 32), 10), seed=0)
        for each in (("resnet32", {}), ("resnet", {"depth": 32}))
    )
    assert list(named.state_dict()) == list(of_depth.state_dict())
    assert all(torch.equal(value, of_depth.state_dict()[key]) for key, value in named.state_dict().items())
    assert zoo.kept_whole("resnet") == zoo.kept_whole("resnet32")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 16}),
        ("bert", {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}),
    ],
)
@pytest.mark.parametrize("task", ["classification", "next-token"])
def test_models_of_transformers_train_every_token(kind: str, options: dict[str, int], task: str) -> None:
    model = zoo.build(f"huggingface:{kind}", options, zoo.DataForm((6,), 7, vocabulary=7, task=task), seed=0)
    tokens = torch.arange(7).repeat(6)[: 6 * 7].view(7, 6)
    outputs = model(tokens).logits
    assert outputs.shape == ((7, 6, 7) if task == "next-token" else (7, 7))
    (outputs * torch.randn(outputs.shape)).sum().backward()
    embedding = next(layer for layer in model.modules() if isinstance(layer, torch.nn.Embedding))
    assert (embedding.weight.grad[:7].abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("huggingface:gtp2", {}, "model.name='huggingface:gtp2' is unknown; .*gpt2"),
        ("huggingface:gpt2", {"n_layers": 1}, "model.options.n_layers=1 is unknown; .*n_layer"),
        (
            "huggingface:gpt2",
            {"vocab_size": 3, "n_layer": 1},
            "has a vocabulary of 3, and the data have token ids up to 6",
        ),
    ],
)
def test_a_model_of_transformers_that_does_not_fit_is_refused(name: str, options: dict[str, int], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        zoo.build(name, options, zoo.DataForm((6,), 7, vocabulary=7, task="next-token"), seed=0)
