"""Calibrate several models one after another, and write the results."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim.calibration import figure, report
from raysim.calibration.fit import Calibration
from raysim.calibration.measure import Subject, calibrate, check_counts, different_widths, subject_of
from raysim.config import loader
from raysim.core.errors import SettingError, shortened
from raysim.core.log import info
from raysim.core.storage import atomic

RESULT = "calibration.json"


@dataclass(frozen=True, slots=True)
class Request:
    """A request for calibrations.

    Attributes:
        models: Names, as `model.name` in an experiment.
        input_shape: Text like `3,32,32` for all models. None: the default of each model.
        num_classes: Number of classes, at least 2.
        options: YAML mapping for all models, as `model.options`. None: no options.
        batch_size: Rows of a step, at least 2.
        repeats: Number of measurements of each width, at least 3.
    """

    models: Sequence[str]
    input_shape: str | None = None
    num_classes: int = 10
    options: str | None = None
    batch_size: int = 10
    repeats: int = 12


def run(request: Request, folder: Path) -> list[Calibration]:
    """Calibrate models, and write figures, a table and a complete JSON file into a folder.

    Raises:
        SettingError: If an argument is not allowed, before anything is measured.
    """
    check_counts(request.batch_size, request.repeats)
    if request.num_classes < 2:
        raise SettingError(f"classes={request.num_classes} is not allowed; allowed: 2 or more")
    shape, options = parse_shape(request.input_shape), parse_options(request.options)
    subjects = [subject_of(name, options, shape, request.num_classes) for name in dict.fromkeys(request.models)]
    for subject in subjects:
        different_widths(subject)
    _make(folder)
    calibrations = [_calibrate(subject, request) for subject in subjects]
    _keep(calibrations, folder)
    return calibrations


def _calibrate(subject: Subject, request: Request) -> Calibration:
    def progress(done: int) -> None:
        info(f"{subject.name}: {done} of {request.repeats} repeats")

    return calibrate(subject, request.batch_size, request.repeats, progress=progress)


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Return channels, height and width.

    Raises:
        SettingError: If the text is not three whole numbers above 0.

    >>> parse_shape("3,32,32")
    (3, 32, 32)
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise SettingError(f"input_shape={text!r} is not allowed; allowed: channels,height,width as in 3,32,32")
    return tuple(int(part) for part in parts)


def parse_options(text: str | None) -> dict[str, Any]:
    """Return a model's options.

    Raises:
        SettingError: If the text is not a YAML mapping.

    >>> parse_options("{hidden: 64}")
    {'hidden': 64}
    """
    problem = f"options={shortened(text)} is not allowed; allowed: a YAML mapping as in '{{hidden: 64}}'"
    try:
        options = {} if text is None else loader.parse_value(text)
    except SettingError as error:
        raise SettingError(f"{problem} ({error})") from None
    if not isinstance(options, dict):
        raise SettingError(problem)
    return options


def file_name(calibrations: Sequence[Calibration]) -> str:
    """Return the file name of a figure, with the model's name if it shows only one."""
    if len(calibrations) > 1:
        return "calibration.png"
    return f"calibration-{re.sub(r'[^A-Za-z0-9._]+', '-', calibrations[0].model)}.png"


def _make(folder: Path) -> None:
    if (folder / RESULT).exists():
        raise SettingError(f"--output={str(folder)!r} holds a calibration already; give a folder without one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--output={str(folder)!r} cannot be made: {error.strerror}") from None


def _keep(calibrations: Sequence[Calibration], folder: Path) -> None:
    for each in calibrations:
        figure.draw(folder / file_name([each]), [each])
    if len(calibrations) > 1:
        figure.draw(folder / file_name(calibrations), calibrations)
    atomic.write_text(folder / "calibration.md", report.markdown(calibrations))
    atomic.write_text(folder / RESULT, json.dumps(report.to_json(calibrations), indent=2))
