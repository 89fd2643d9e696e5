"""Bad input of a method's options: the message names the setting, the value and the allowed values."""

import pytest

from raysim.client.training import LocalTraining
from raysim.core.errors import SettingError
from raysim.core.options import Option
from raysim.methods import resolve as methods
from raysim.methods.table import METHODS
from raysim.simulation.build import check_names
from tests.conftest import settings_of

LOCAL = LocalTraining(epochs=2)


def refused(name: str, local: LocalTraining = LOCAL, **given: object) -> str:
    with pytest.raises(SettingError) as caught:
        methods.resolve(name, given, local)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("autoflip", {"prune_shaer": 0.3}, ["method.options.prune_shaer=0.3 is unknown", "own: prune_share"]),
        ("fedavg", {"distill": True}, ["method.options.distill=True is unknown", "options of its own: none"]),
        ("fjord", {"distill": 1}, ["method.options.distill=1 is not allowed", "true or false"]),
        ("fjord", {"distill": "yes"}, ["distill='yes'", "true or false"]),
        ("autoflip", {"mode": "sparse"}, ["mode='sparse'", "hybrid, unstructured, structured"]),
        ("autoflip", {"agreement": None}, ["agreement=None", "none, sign, overlap"]),
        ("autoflip", {"prune_share": 1.0}, ["prune_share=1.0", "a number from 0 to 0.999"]),
        ("autoflip", {"prune_share": "0.3"}, ["prune_share='0.3'", "a number"]),
        ("autoflip", {"prune_share": float("nan")}, ["prune_share=nan", "from 0 to 0.999"]),
        ("autoflip", {"patience": 0}, ["patience=0", "a whole number from 1"]),
        ("autoflip", {"patience": True}, ["patience=True", "a whole number from 1"]),
        ("autoflip", {"exploration_epochs": 2.5}, ["exploration_epochs=2.5", "a whole number"]),
        ("feddst", {"sparsity": -0.1}, ["sparsity=-0.1", "from 0 to 0.999"]),
        ("feddst", {"readjust_rounds": 0}, ["readjust_rounds=0", "from 1"]),
        ("fedtiny", {"pool_size": 0}, ["pool_size=0", "a whole number from 1"]),
        ("fedmef", {"extrusion_penalty": -1.0}, ["extrusion_penalty=-1.0", "a number from 0"]),
        ("fedrts", {"aggregated_share": 2}, ["aggregated_share=2", "from 0 to 1"]),
        ("prunefl", {"reconfigure_rounds": [1]}, ["reconfigure_rounds=[1]", "a whole number from 1"]),
        ("fedmp", {"leaf_width": 0}, ["leaf_width=0", "from 0.001 to 0.9"]),
        ("fedprox", {"straggler_share": 2}, ["straggler_share=2", "from 0 to 1"]),
    ],
)
def test_options_of_a_rows_own(name: str, options: dict, parts: list[str]) -> None:
    said = refused(name, options=options)
    assert all(part in said for part in parts), said


@pytest.mark.parametrize("name", METHODS)
def test_every_option_has_a_default_that_is_allowed_and_is_complete_when_resolved(name: str) -> None:
    row = METHODS[name]
    for option, declared in row.own.items():
        assert declared.check(option, declared.default) == declared.default
        assert declared.about
    assert set(methods.resolve(name, {}, LOCAL).options.own) == set(row.own)


def test_whole_numbers_are_numbers_but_not_the_other_way() -> None:
    assert methods.resolve("autoflip", {"options": {"prune_share": 0}}, LOCAL).options["prune_share"] == 0.0
    assert type(Option(0.5, "x").check("x", 1)) is float
    assert Option(0.5, "x").allowed == "a number from 0"


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"mask": "no_module_xyz:rule"}, ["method.mask='no_module_xyz:rule'", "cannot be imported"]),
        ({"mask": "raysim.pruning.masks:keep_tip"}, ["has no 'keep_tip'", "nearest: keep_top"]),
        ({"mask": "raysim.methods.mask_rules:MASKS"}, ["is dict", "allowed: a function"]),
        ({"fill": "raysim.server.fill:fill_globl"}, ["method.fill=", "nearest: fill_global"]),
        ({"fill": "raysim.server.fill:FILLS"}, ["method.fill=", "is dict"]),
        ({"score": "raysim.methods.scores:l1_scor"}, ["method.score=", "nearest: l1_score"]),
        ({"score": "math:pi"}, ["method.score='math:pi'", "is float"]),
        ({"mask": "topp"}, ["method.mask='topp' is unknown", "known: top"]),
        ({"normalization": "bach"}, ["method.normalization='bach'", "known: batch"]),
        ({"objective": "proximate"}, ["method.objective='proximate'", "known: proximal"]),
    ],
)
def test_dotted_paths_and_names_of_parts(given: dict, parts: list[str]) -> None:
    said = refused("ca-hfp", **given)
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("no_module_xyz:row", ["method.name='no_module_xyz:row'", "cannot be imported"]),
        ("raysim.methods.scores:l1_score", ["is function", "allowed: a raysim.Method"]),
        ("raysim.methods.table:METHOD", ["has no 'METHOD'", "nearest: METHODS"]),
        ("scafold", ["method.name='scafold' is unknown", "known: scaffold"]),
    ],
)
def test_names_of_methods(name: str, parts: list[str]) -> None:
    said = refused(name)
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    ("name", "given", "parts"),
    [
        ("dapperfl", {"objective": "scaffold"}, ["method.objective='scaffold'", "allowed: plain, proximal"]),
        ("ca-hfp", {"mask": "coverage", "refresh_rounds": 2}, ["method.refresh_rounds=2 has no effect", "coverage"]),
        ("ca-hfp", {"mask": "coverage", "hysteresis": 0.1}, ["method.hysteresis=0.1 has no effect", "coverage"]),
        ("ca-hfp", {"mask": "coverage", "unseen": "l1"}, ["method.unseen='l1' has no effect", "coverage"]),
        (
            "ca-hfp+",
            {"silent_dormant": False},
            ["method.silent_dormant=False", "allowed: with method.silent_after=0"],
        ),
        ("random", {"silent_after": 1}, ["method.silent_after=1 has no effect"]),
        ("ca-hfp", {"mask": "coverage", "score": "raysim.methods.scores:l1_score"}, ["method.score=", "no effect"]),
        ("magnitude", {"mask": "coverage"}, ["method.mask='coverage'", "estimates no curvature", "top"]),
        ("magnitude", {"score": "exact"}, ["method.score='exact'", "allowed: l1, delta_w, or a dotted path"]),
        ("ca-hfp", {"score": "delta"}, ["method.score='delta' is unknown; known: delta_w"]),
        ("ca-hfp", {"score": "l1", "estimator": "fisher"}, ["estimator='fisher' has no", "and method.score='l1'"]),
        (
            "ca-hfp",
            {"mask": "coverage", "score": "l1"},
            ["method.mask='coverage'", "no curvature for method.score='l1'"],
        ),
        ("fedavg", {"score": "delta_w"}, ["method.score='delta_w' has no effect with method.name='fedavg';"]),
        ("fedavg", {"fill": "zero"}, ["method.fill='zero' has no effect"]),
        ("heterofl", {"normalization": "group"}, ["method.normalization='group' has no effect"]),
    ],
)
def test_choices_that_do_not_go_together(name: str, given: dict, parts: list[str]) -> None:
    said = refused(name, **given)
    assert all(part in said for part in parts), said


def test_dapperfl_needs_two_epochs_and_scaffold_plain_sgd() -> None:
    assert "training.epochs=1 is not allowed" in refused("dapperfl", LocalTraining(epochs=1))
    assert "training.optimizer='adam'" in refused("scaffold", LocalTraining(optimizer="adam"))
    assert "training.optimizer='adam'" in refused("magnitude", LocalTraining(optimizer="adam"), objective="scaffold")


def test_bad_options_are_said_before_anything_is_loaded() -> None:
    with pytest.raises(SettingError, match=r"method\.options\.mode='x'"):
        check_names(settings_of("autoflip", "method.options={mode: x}"))


def test_costs_of_a_users_own_mask_are_not_known_beforehand() -> None:
    assert methods.resolve("magnitude", {}, LOCAL).has_known_costs
    assert methods.resolve("ca-hfp+", {}, LOCAL).has_known_costs
    for mask in ("global", "global-per-flop", "raysim.methods.mask_rules:top_of_model"):
        assert not methods.resolve("magnitude", {"mask": mask}, LOCAL).has_known_costs
