"""The first records of a source."""

from videorft_jax.data.loader.measure import Source
from videorft_jax.data.records.records import Record


class Head:
    """A source of the first `count` records of another, or of all where there are fewer. Media that
    the source holds itself stay with it."""

    def __init__(self, source: Source, count: int):
        self.source, self.count = source, min(count, len(source))
        self.data_root = source.data_root

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        return self.source[index]

    def where(self, index: int) -> str:
        return self.source.where(index)

    def media(self, index: int) -> str | bytes | None:
        read = getattr(self.source, "media", None)
        return read(index) if read else None

    @property
    def fingerprint(self) -> str | None:
        return getattr(self.source, "fingerprint", None)
