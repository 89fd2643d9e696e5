"""`raysim devices`: its output, its picture, and the input that it refuses."""

import json
import pickle

import numpy as np
import pytest
from matplotlib import image

from raysim.cli import device_tables
from raysim.population import figure as device_figure
from raysim.population import summary as device_summary
from raysim.population.presets import PRESETS
from raysim.population.profiles import FIGURES, DeviceProfile
from raysim.population.sampling import listed
from tests.commands import left_with


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def devices(capsys):
    """Runs the command and returns its exit code, standard output and standard error."""

    def run(*parts: str) -> tuple[int, str, str]:
        code = left_with("devices", *parts)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_without_a_name_the_presets_are_listed(devices, folder):
    code, out, _ = devices()
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(PRESETS)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_printed_and_drawn(devices, folder, name):
    code, out, _ = devices(name, "--clients", "40")
    assert code == 0
    assert "40 clients" in out
    assert all(tier.device.name in out for tier in PRESETS[name].tiers if tier.share > 0.02)
    assert "source: " in out
    assert "illustrative, without a source: " in out
    assert [path.name for path in folder.iterdir()] == [f"devices-{name}.png"]
    assert image.imread(folder / f"devices-{name}.png").shape[1] == 1210


def test_one_json_object_tells_the_figures_and_the_settings(devices, folder):
    code, out, _ = devices("fedrolex-real", "--clients", "100", "--json")
    page = json.loads(out)
    assert code == 0
    assert [tier["clients"] for tier in page["tiers"]] == [6, 10, 11, 18, 55]
    assert page["tiers"][1]["keep_ratio"] == [0.5] * 3
    assert page["tiers"][1]["memory_bytes"] == [None] * 3
    assert page["population"]["tiers"][1]["flops_per_s"] == 2.5e9
    assert page["plot"] is None
    assert list(folder.iterdir()) == []


def test_the_picture_goes_where_it_is_asked_for(devices, folder):
    code, out, _ = devices("uniform", "--json", "--plot", "mine.png")
    assert (code, json.loads(out)["plot"]) == (0, "mine.png")
    assert [path.name for path in folder.iterdir()] == ["mine.png"]


@pytest.mark.slow
def test_figures_at_their_defaults_are_left_out_of_the_further_table(devices):
    assert "further figures" not in devices("uniform", "--clients", "3")[1]
    out = devices("phones-2020", "--clients", "300")[1]
    (table,) = out.split("further figures")[1:]
    assert all(told in table for told in ("speed varies", "links vary", "waiting", "charging", "38.5 %", "0.05"))
    assert not any(left_out in table for left_out in ("drift", "overhead", "cap", "bandwidth", "swings"))


def test_every_figure_has_a_column():
    columns = (*device_tables.COLUMNS, *device_tables.FURTHER)
    assert sorted(figure for _, figure, _ in columns) == sorted(("keep_ratio", *FIGURES))


@pytest.mark.slow
@pytest.mark.parametrize("figure", [figure for _, figure, _ in device_tables.FURTHER])
def test_a_figure_that_is_set_has_its_column(devices, folder, figure):
    (folder / "mine.csv").write_text(
        f"flops_per_s,down_bytes_per_s,up_bytes_per_s,{figure}\n1,1,1,\n1,1,1,0.5\n", encoding="utf-8"
    )
    (heading,) = [heading for heading, name, _ in device_tables.FURTHER if name == figure]
    assert heading.splitlines()[0] in devices("mine.csv")[1].split("further figures")[1]


@pytest.mark.parametrize(
    ("plot", "why"),
    [("nowhere/x.png", "No such file or directory"), ("folder", "it is a folder"), ("", "it is a folder")],
)
def test_a_picture_that_cannot_be_written_is_told(devices, folder, plot, why):
    (folder / "folder").mkdir()
    code, out, err = devices("uniform", "--clients", "2", "--plot", plot)
    assert (code, out) == (2, "")
    assert err.startswith(f"raysim: --plot={plot or '.'!r} cannot be written: {why}")
    assert [path.name for path in folder.rglob("*")] == ["folder"]


def test_the_seed_decides_what_is_drawn(devices):
    outputs = [devices("phones-2020", "--json", "--clients", "50", "--seed", seed)[1] for seed in ("0", "0", "1")]
    assert outputs[0] == outputs[1] != outputs[2]


def test_a_file_may_have_any_name(devices, folder):
    (folder / "[bold]mine.csv").write_text("flops_per_s,down_bytes_per_s,up_bytes_per_s\n1e9,1,2\n", encoding="utf-8")
    code, out, _ = devices("[bold]mine.csv")
    assert code == 0
    assert "[bold]mine.csv: 1 clients" in out


def test_files_are_shown_with_all_their_devices(devices, folder):
    (folder / "mine.csv").write_text(
        "flops_per_s,down_bytes_per_s,up_bytes_per_s\n1e9,1,2\n3e9,1,2\n", encoding="utf-8"
    )
    page = json.loads(devices("mine.csv", "--json")[1])
    assert [(tier["tier"], tier["flops_per_s"][1]) for tier in page["tiers"]] == [("slow", 1e9), ("fast", 3e9)]
    (folder / "capacity").write_bytes(
        pickle.dumps({k: {"computation": 60.0, "communication": 8.0} for k in range(7)})
    )
    assert json.loads(devices("capacity", "--json")[1])["clients"] == 7
    assert json.loads(devices("capacity", "--json", "--clients", "20")[1])["clients"] == 20


def test_the_end_of_a_name_counts_in_capitals_too(devices, folder):
    (folder / "A.CSV").write_text("flops_per_s,down_bytes_per_s,up_bytes_per_s\n1,1,1\n", encoding="utf-8")
    (folder / "B.Json").write_text('{"1": {"computation": 60.0, "communication": 8.0}}', encoding="utf-8")
    assert [json.loads(devices(name, "--json")[1])["clients"] for name in ("A.CSV", "B.Json")] == [1, 1]


def test_the_population_of_settings_is_shown(devices, folder):
    tier = {"name": "a", "share": 1.0, "flops_per_s": 1e9, "down_bytes_per_s": 1.0, "up_bytes_per_s": 2.0}
    for name, content in (
        ("tiers.yaml", {"tiers": [tier]}),
        ("whole.yml", {"rounds": 2, "population": {"clients": 30, "tiers": [tier]}}),
        ("preset.yaml", {"population": {"clients": 30, "devices": {"preset": "fedrolex-real"}}}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    def clients(*parts: str) -> list[int]:
        return [tier["clients"] for tier in json.loads(devices(*parts, "--json")[1])["tiers"]]

    assert (clients("tiers.yaml"), clients("whole.yml")) == ([10_000], [30])
    assert clients("whole.yml", "--clients", "7") == [7]
    assert clients("preset.yaml", "--clients", "100") == [6, 10, 11, 18, 55]


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (
            ["phone-2020"],
            "raysim: PRESET|FILE='phone-2020' is no preset, and no file; allowed: a preset (phones-2020,",
        ),
        (["nowhere.xlsx"], "'nowhere.xlsx' is no preset, and no file; allowed: a preset ("),
        (["mine.xlsx"], "PRESET|FILE='mine.xlsx' is a file of another kind; allowed: a preset ("),
        (["."], "PRESET|FILE='.' is a folder; allowed: a preset ("),
        (["nowhere.JSON"], "population.devices.fedscale='nowhere.JSON' cannot be read: No such file or directory"),
        (["nowhere.pkl"], "population.devices.fedscale='nowhere.pkl' cannot be read: No such file or directory"),
        (["nowhere.yaml"], "FILE='nowhere.yaml' cannot be read: No such file or directory"),
        (["mine.yml"], "FILE='mine.yml': population=3 is not allowed; allowed: settings"),
        (["other.yaml"], "tiers.0.share is missing"),
        (["nowhere.csv"], "raysim: population.devices.path='nowhere.csv' does not exist"),
        (["uniform", "--clients", "0"], "0 is not in the range"),
    ],
)
def test_bad_input_leaves_with_two(devices, folder, parts, told):
    (folder / "mine.xlsx").write_bytes(b"PK..")
    (folder / "mine.yml").write_text("population: 3", encoding="utf-8")
    (folder / "other.yaml").write_text("tiers: [{name: a}]", encoding="utf-8")
    code, out, err = devices(*parts)
    assert (code, out) == (2, "")
    assert told in err
    assert len(list(folder.iterdir())) == 3


def test_a_summary_is_counted_by_hand():
    profiles = [DeviceProfile("a", speed, 1, 2, train_watts=speed) for speed in range(1, 11)]
    owned = listed([*profiles, DeviceProfile("b", 5, 1, 2, memory_bytes=3)], [0.5] * 10 + [1.0])
    first, second = device_summary.of_devices(owned)
    assert (first["tier"], first["clients"], first["share"]) == ("a", 10, 10 / 11)
    assert first["flops_per_s"] == [1, 5, 9]
    assert first["train_watts"] == 5.5
    assert first["memory_bytes"] == [None] * 3
    assert tuple(first) == ("tier", "clients", "share", *device_summary.SPREAD_OUT, *device_summary.AVERAGED)
    assert set(FIGURES) < set(first)
    assert (second["keep_ratio"], second["memory_bytes"]) == ([1, 1, 1], [3, 3, 3])


def test_a_mean_of_equal_numbers_is_that_number():
    (tier,) = device_summary.of_devices(listed([DeviceProfile("a", 1e9, 1, 2, latency_s=0.021)] * 10_000))
    assert tier["latency_s"] == 0.021


def test_half_of_a_tier_without_limits_is_told():
    profiles = [DeviceProfile("a", 1, 1, 1, battery_j=limit, data_cap_bytes=limit) for limit in (5, np.inf, 7, 5)]
    (tier,) = device_summary.of_devices(listed(profiles))
    assert tier["battery_j"] == tier["data_cap_bytes"] == [5, 5, None]


@pytest.mark.slow
def test_a_picture_has_a_colour_for_each_tier_with_clients(tmp_path):
    profiles = [
        DeviceProfile(name, speed, 1, 1, memory_bytes=1e9) for name, speed in (("a", 1e9), ("b", 2e9), ("c", 1))
    ]
    owned = listed(profiles, device_of=np.array([0, 1, 0]))
    pixels = image.imread(device_figure.draw(tmp_path / "a.png", owned, "title"))[:, :, :3]
    for color, is_there in (("#332288", True), ("#88CCEE", True), ("#44AA99", False)):
        rgb = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        faded = 0.8 * rgb + 0.2
        assert (np.abs(pixels - faded).max(axis=2) < 0.02).any() == is_there
