"""Settings of the compression of clients' updates."""

from typing import Self

from pydantic import model_validator

from raysim.config.settings import Settings, Share


class CompressionSettings(Settings):
    """How clients make their updates smaller before they send them; bytes and seconds of the upload follow."""

    name: str | None = None
    """`top-k` (the entries of greatest magnitude; the rest is added to the client's next update), `8-bit` (each entry
    rounded at random to one of 255 levels) or a compression of your own; null: updates are sent whole."""
    share: Share | None = None
    """Share of an update's entries that are sent, in (0, 1]; default 0.01. For `name: top-k`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.share is not None and self.name != "top-k":
            raise ValueError(f"share={self.share:g} has no effect with name={self.name!r}; it belongs to 'top-k'")
        return self
