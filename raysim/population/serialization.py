"""Save the clients' devices in one Parquet file, and load them to the bit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysim.core.storage.atomic import write_atomically
from raysim.core.tensors import Columns
from raysim.population.profiles import FIGURES, Devices, OnlineIntervals

NUMBERS = (*FIGURES, "keep_ratios", "tier_of_device", "device_of")
EXAMPLES = "examples"
ONLINE = tuple(f"online_{name}" for name in OnlineIntervals.__slots__)


def save(devices: Devices, path: Path, examples: NDArray[np.int64] | None = None) -> Path:
    """Write devices as a Parquet table of one row, whose columns are lists of different lengths.

    Figures are written once per distinct device; columns that no device has are null.

    Args:
        devices: The devices of all clients.
        path: The file.
        examples: The training rows of each client, `(clients,)`. None: they are not written.
    """
    numbers: Columns = {
        **devices.figures,
        "keep_ratios": devices.keep_ratios,
        "tier_of_device": devices.tier_of_device,
        "device_of": devices.device_of,
    }
    if devices.online is not None:
        numbers |= {
            name: getattr(devices.online, part) for name, part in zip(ONLINE, OnlineIntervals.__slots__, strict=True)
        }
    if devices.trace_of is not None:
        numbers |= {"trace_of": devices.trace_of}
    if examples is not None:
        numbers |= {EXAMPLES: examples}
    row = {name: pa.array([numbers.get(name)]) for name in (*NUMBERS, *ONLINE, "trace_of", EXAMPLES)}
    table = pa.table(row | {"tiers": pa.array([list(devices.tiers)])})
    return write_atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))


def load_examples(path: Path) -> NDArray[np.int64] | None:
    """Read the training rows of each client, `(clients,)`. None: the file does not have them.

    Raises:
        OSError: If the file cannot be read.
    """
    if EXAMPLES not in pq.read_schema(path).names:
        return None
    column = pq.read_table(path, columns=[EXAMPLES])[EXAMPLES].combine_chunks()
    return None if column.null_count else np.asarray(column.flatten())


def load(path: Path) -> Devices:
    """Read devices that `save` has written.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds anything else.
    """
    table = pq.read_table(path)
    missing = [name for name in (*NUMBERS, *ONLINE, "trace_of", "tiers") if name not in table.column_names]
    if missing or table.num_rows != 1:
        raise ValueError(f"{path.name} holds no devices" + (f": {missing[0]} is missing" if missing else ""))
    lists = {name: table[name].combine_chunks() for name in table.column_names}
    numbers = {
        name: np.asarray(each.flatten()) for name, each in lists.items() if name != "tiers" and not each.null_count
    }
    online = None
    if ONLINE[0] in numbers:
        online = OnlineIntervals(*(numbers[name] for name in ONLINE))
    return Devices(
        figures={name: numbers[name] for name in FIGURES},
        keep_ratios=numbers["keep_ratios"],
        tiers=tuple(lists["tiers"].to_pylist()[0]),
        tier_of_device=numbers["tier_of_device"],
        device_of=numbers["device_of"],
        online=online,
        trace_of=numbers.get("trace_of"),
    )
