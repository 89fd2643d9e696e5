"""Settings of costs: prices of energy and machines."""

from raysim.config.settings import NotNegative, Settings


class CostSettings(Settings):
    """Prices of energy and machines, from which money and CO2 of a run are computed; null: not computed."""

    price_per_kwh: NotNegative | None = None
    """Price of a kilowatt-hour in any currency, at least 0."""
    carbon_g_per_kwh: NotNegative | None = None
    """Grams of CO2 per kilowatt-hour, at least 0."""
    cluster_watts: NotNegative | None = None
    """Power of the machines that run the simulation, in watts, at least 0; it counts for the wall time."""
    cluster_price_per_hour: NotNegative | None = None
    """Price of an hour of these machines in the same currency, at least 0."""
