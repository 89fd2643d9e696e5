"""Presets of devices with the sources of their figures; figures without a source are called illustrative."""

from collections.abc import Sequence
from dataclasses import dataclass

from raysim.core.errors import unknown_name
from raysim.population.profiles import DeviceProfile, Tier


@dataclass(frozen=True, slots=True)
class Preset:
    """Tiers with a name.

    Attributes:
        summary: Description of the tiers in one line.
        sources: Sources of figures.
        illustrative: Figures without a source.
        tiers: The tiers.
    """

    summary: str
    sources: tuple[str, ...]
    illustrative: str
    tiers: tuple[Tier, ...]


MBIT_S = 1e6 / 8
GB = 1e9

FEMNIST_FLOPS_PER_BATCH = 10 * 102_017_024
"""Training FLOPs of FLASH's batch of 10: `models.cost.count` of LEAF's FEMNIST network (two convolutions of 32 and 64
filters 5 x 5, each pooled by 2, a layer of 2,048, 62 classes) on 28 x 28 pixels."""
FEMNIST_S_PER_BATCH = {"low": 1.642, "mid": 0.588, "high": 0.179}
"""FLASH, `models/utils/device_util`: one phone for each of three classes."""
FLASH_SHARES = {"low": 53.2, "mid": 46.4, "high": 0.45}
"""Percent of the devices in FLASH's trace; they add up to 100.05."""
COMPUTE_SPREAD = 0.275
"""With it the preset's speeds have p90 / p10 = 4.4, as AI-Benchmark's CPU scores of phones with more than 2 GB."""
WIFI_DOWN_MEDIAN, WIFI_UP_MEDIAN = 35 * MBIT_S, 26 * MBIT_S
"""FLASH, `speed_distri.json`, 19 users."""
WIFI_SPREAD = 0.43
"""Lognormal between p10 and p90 of the same users: 26 and 73 Mbit/s down give 0.42, 16 and 47 up give 0.44."""
WIFI_MEAN_PER_MEDIAN = (1 + WIFI_SPREAD**2) ** 0.5
"""Of a lognormal; profiles hold means."""
RAM = {"low": 3 * GB, "mid": 6 * GB, "high": 8 * GB}
"""Quartiles of AI-Benchmark's phones for the lower and the upper half, p90 for the best."""
TRAINING_SHARE_OF_RAM = 0.25
"""Illustrative: the system and other apps use the rest."""
MEMORY_SPREAD = 0.35
"""Illustrative; about a third of the RAM, as from the p75 to the p90 of all phones."""
FIXED_LINE_LATENCY_S = 0.021
"""Ookla, September 2020, fixed lines, worldwide; quoted from secondary pages."""
COMPUTE_VARIATION, LINK_VARIATION = 0.14, 0.385
"""FLASH: from batch to batch 0.1 to 0.18 of the mean, WiFi 0.37 to 0.40; the middle of each range."""
PHONE_KEEP_RATIOS = {"low": 0.5, "mid": 1.0, "high": 1.0}
"""Illustrative: the widest of 1, 1/2, 1/4 ... at which a class needs no longer than the middle class for the whole
model, as FLOPs grow with the width squared. The best class, 0.45 % of the phones, could not train the rest alone."""
WIFI_J_PER_BYTE = 1.0 / WIFI_DOWN_MEDIAN
"""Illustrative: a radio of 1 W at the median bandwidth."""


def _phone(name: str, train_watts: float, battery_wh: float, charge_watts: float) -> Tier:
    device = DeviceProfile(
        name,
        flops_per_s=FEMNIST_FLOPS_PER_BATCH / FEMNIST_S_PER_BATCH[name],
        down_bytes_per_s=WIFI_DOWN_MEDIAN * WIFI_MEAN_PER_MEDIAN,
        up_bytes_per_s=WIFI_UP_MEDIAN * WIFI_MEAN_PER_MEDIAN,
        latency_s=FIXED_LINE_LATENCY_S,
        compute_variation=COMPUTE_VARIATION,
        link_variation=LINK_VARIATION,
        memory_bytes=RAM[name] * TRAINING_SHARE_OF_RAM,
        train_watts=train_watts,
        idle_watts=0.05,
        radio_j_per_byte=WIFI_J_PER_BYTE,
        battery_j=battery_wh * 3600,
        charge_watts=charge_watts,
    )
    share = FLASH_SHARES[name] / sum(FLASH_SHARES.values())
    return Tier(device, share, PHONE_KEEP_RATIOS[name], COMPUTE_SPREAD, WIFI_SPREAD, MEMORY_SPREAD)


def _level(name: str, share: float, keep_ratio: float) -> Tier:
    """Return a device for a width: its speed grows as the width squared, so that all train equally long."""
    device = DeviceProfile(
        name,
        flops_per_s=1e10 * keep_ratio**2,
        down_bytes_per_s=86 * MBIT_S * keep_ratio,
        up_bytes_per_s=46 * MBIT_S * keep_ratio,
        latency_s=FIXED_LINE_LATENCY_S,
        train_watts=4 * keep_ratio,
        radio_j_per_byte=WIFI_J_PER_BYTE,
    )
    return Tier(device, share, keep_ratio)


def _levels(names: str, shares: Sequence[float], keep_ratios: Sequence[float]) -> tuple[Tier, ...]:
    return tuple(map(_level, names.split(), shares, keep_ratios))


def _rank(first: int, second: int) -> Preset:
    levels = _levels(f"pruned-{first} pruned-{second}", (0.5, 0.5), ((100 - first) / 100, (100 - second) / 100))
    return Preset(f"half of the clients pruned by {first} %, half by {second} %", (CA_HFP,), MADE_FOR_WIDTHS, levels)


HALVINGS = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
CA_HFP = "CA-HFP, experiments: shares and pruning; here the pruned share is taken to be one of channels"
MADE_FOR_WIDTHS = (
    "speeds (10 GFLOP/s x width squared), bandwidths (Ookla's fixed line, 86 down and 46 up Mbit/s, x width), energy"
)


def preset(name: str) -> Preset:
    """Return a preset.

    Raises:
        SettingError: If the name is unknown.
    """
    if name not in PRESETS:
        raise unknown_name("population.devices.preset", name, PRESETS)
    return PRESETS[name]


_UNIFORM = DeviceProfile(
    "all",
    FEMNIST_FLOPS_PER_BATCH / FEMNIST_S_PER_BATCH["mid"],
    WIFI_DOWN_MEDIAN,
    WIFI_UP_MEDIAN,
    latency_s=FIXED_LINE_LATENCY_S,
    train_watts=2.5,
    radio_j_per_byte=WIFI_J_PER_BYTE,
)

PRESETS: dict[str, Preset] = {
    "phones-2020": Preset(
        "phones of three classes, with spreads between and variation within them",
        (
            "FLASH (Yang et al., WWW 2021): shares, speeds (FEMNIST seconds per batch, counted FLOPs), WiFi",
            "AI-Benchmark, January 2020, 333 phones: spread of the speed, RAM",
            "Ookla, September 2020: latency",
        ),
        "keep ratios, a quarter of the RAM for training and its spread, power, radio energy, batteries; nobody "
        "drops out and all are always online: FLASH's 10 % of failures come of deadlines and availability, which "
        "have settings of their own",
        (
            _phone("low", train_watts=1.5, battery_wh=11.5, charge_watts=5),
            _phone("mid", train_watts=2.5, battery_wh=15.4, charge_watts=10),
            _phone("high", train_watts=4.0, battery_wh=17.3, charge_watts=18),
        ),
    ),
    "heterofl-a-e": Preset(
        "HeteroFL's levels a to e in equal shares: widths 1 to 1/16",
        ("HeteroFL (Diao et al., arXiv 2010.01264): widths, equal shares",),
        MADE_FOR_WIDTHS,
        _levels("a b c d e", (0.2,) * 5, HALVINGS),
    ),
    "fedrolex-real": Preset(
        "FedRolex's capability mix: more than half of the clients at width 1/16",
        ("FedRolex (Alam et al., arXiv 2212.01548), README: widths, shares of 6, 10, 11, 18 and 55 %",),
        MADE_FOR_WIDTHS,
        _levels("a b c d e", (0.06, 0.10, 0.11, 0.18, 0.55), HALVINGS),
    ),
    "ca-hfp-rank0": _rank(0, 25),
    "ca-hfp-rank1": _rank(25, 50),
    "ca-hfp-rank2": _rank(50, 75),
    "ca-hfp-rank3": _rank(75, 90),
    "ca-hfp-ranks": Preset(
        "CA-HFP's four ranks together: clients pruned by 0, 25, 50, 75 and 90 %",
        (CA_HFP,),
        f"the mixture, which is none of the paper's experiments; {MADE_FOR_WIDTHS}",
        _levels(
            "pruned-0 pruned-25 pruned-50 pruned-75 pruned-90", (0.125, 0.25, 0.25, 0.25, 0.125),
            (1.0, 0.75, 0.5, 0.25, 0.1),
        ),
    ),
    "uniform": Preset(
        "everyone the same: the middle phone of phones-2020, without spread or variation",
        ("FLASH (Yang et al., WWW 2021): speed, median WiFi", "Ookla, September 2020: latency"),
        "the whole model fits on it; power, radio energy",
        (Tier(_UNIFORM, 1.0, 1.0),),
    ),
}  # fmt: skip
"""Presets by name, for `population.devices.preset`."""
