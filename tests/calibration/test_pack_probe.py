import pytest

from raysim.calibration.pack_probe import probe
from raysim.core.errors import SettingError
from raysim.simulation.build import build_scenario
from tests.conftest import tiny_settings


@pytest.mark.slow
def test_the_probe_times_every_size_and_recommends_the_fastest() -> None:
    packable = ("model.name=mlp", "model.options={hidden: []}", "method.name=fedavg", "data.partition={name: iid}")
    found = probe(build_scenario(tiny_settings(*packable, "selection.clients_per_round=6")))
    assert [size["pack"] for size in found["sizes"]] == [1, 2, 4]
    assert found["recommended"] == max(found["sizes"], key=lambda size: size["clients_per_s"])["pack"]
    assert found["sizes"][0]["packed"] == 0
    assert found["sizes"][2]["packed"] > 0


def test_the_probe_says_why_there_is_nothing_to_choose() -> None:
    with pytest.raises(SettingError, match=r"ca-hfp.*allowed: auto, 1"):
        probe(build_scenario(tiny_settings("model.name=mlp", "model.options={}")))
