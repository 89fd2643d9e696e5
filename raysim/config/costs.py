"""Settings of costs: prices of energy and machines."""

from raysim.config.settings import NotNegative, Settings


class CostSettings(Settings):
    """What energy and machines cost, to tell money and CO2 of a run; null = not told."""

    price_per_kwh: NotNegative | None = None
    """Price of a kilowatt-hour, in any currency, at least 0."""
    carbon_g_per_kwh: NotNegative | None = None
    """Grams of CO2 per kilowatt-hour, at least 0."""
    cluster_watts: NotNegative | None = None
    """Power of the machines that run the simulation, watts, at least 0; counted over wall time."""
    cluster_price_per_hour: NotNegative | None = None
    """Price of an hour of those machines, in the same currency, at least 0."""
