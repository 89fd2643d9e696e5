import json
from math import inf

import pytest

from raysim.calibration import measure, run
from raysim.core import signals
from tests.commands import left_with


@pytest.fixture
def command(capsys, tmp_path):
    """Runs the command in this process; returns its exit code and what it wrote."""

    def call(*parts: str) -> tuple[int, str, str]:
        code = left_with("calibrate", *parts, "--output", tmp_path / "out")
        written = capsys.readouterr()
        return code, written.out, written.err

    return call


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["lennet"], "model.name='lennet' is unknown; known: lenet,"),
        (["lenet", "torchvision/resnet19"], "model.name='torchvision/resnet19' is unknown; nearest of torchvision's"),
        (
            ["lenet", "--input-shape", "3,32"],
            "input_shape='3,32' is not allowed; allowed: channels,height,width as",
        ),
        (["lenet", "--input-shape", "1,0,28"], "input_shape='1,0,28' is not allowed"),
        (["lenet", "--input-shape", "1,8,8"], "model.name='lenet' needs images of at least 12 x 12 pixels"),
        (["lenet", "--batch-size", "1"], "batch_size=1 is not allowed; allowed: 2 or more"),
        (["lenet", "--repeats", "2"], "repeats=2 is not allowed; allowed: 3 or more"),
        (["lenet", "--classes", "1"], "classes=1 is not allowed; allowed: 2 or more"),
        (["mlp", "--options", "{hiden: [8]}"], "model.options.hiden=[8] is unknown; model.name='mlp' takes: hidden"),
        (["mlp", "--options", "[8"], "options='[8' is not allowed; allowed: a YAML mapping as in '{hidden: 64}'"),
        (["mlp", "--options", "{hidden: []}"], "model.name='mlp' has no channels that can be pruned"),
        (["mlp", "--options", "{hidden: [2]}"], "model.name='mlp' has 2 different widths to fit and 0 to hold out"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_measured(command, tmp_path, parts, message):
    code, out, err = command(*parts)
    assert (code, out) == (signals.BAD_INPUT, "")
    assert err.startswith(f"raysim: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("parts", [[], ["lenet", "--repeats", "many"], ["lenet", "--repeat", "3"]])
def test_arguments_of_another_form_are_refused(command, parts):
    code, out, err = command(*parts)
    assert (code, out) == (signals.BAD_INPUT, "")
    assert "Error" in err


def test_a_folder_with_a_calibration_is_refused(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / run.RESULT).write_text("{}")
    code, _, err = command("lenet")
    assert code == signals.BAD_INPUT
    assert "holds a calibration already" in err


@pytest.mark.slow
def test_the_command_measures_two_models_and_leaves_its_files(command, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "REPEAT_S", 0.01)
    mlp = ["mlp", "lenet", "mlp", "--repeats", "3", "--json"]
    code, out, err = command(*mlp)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "calibration-lenet.png",
        "calibration-mlp.png",
        "calibration.png",
        "calibration.md",
        "calibration.json",
    }
    result = json.loads(out.splitlines()[-1])
    assert result == json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert [each["model"] for each in result["models"]] == ["mlp", "lenet"]
    assert set(result["machine"]) == {"cpu", "cpus", "threads", "versions"}
    for each in result["models"]:
        assert [width["keep_ratio"] for width in each["widths"]] == sorted(
            measure.FITTED + measure.HELD_OUT, reverse=True
        )
        tier = each["tier"]
        assert 0 < tier["flops_per_s"] < inf
        assert 0 <= tier["step_overhead_s"] < 1
        assert tier["memory_bytes_per_s"] is None or 0 < tier["memory_bytes_per_s"] < inf
        assert all(0 < width["predicted_s"] < 1 for width in each["widths"])
        for line in (f"flops_per_s: {tier['flops_per_s']:.3e}", f"step_overhead_s: {tier['step_overhead_s']:.3e}"):
            assert line in out
        assert 0 <= each["median_error"] <= each["largest_error"] < 2
    assert out.count("held out") == 2 * len(measure.HELD_OUT)
