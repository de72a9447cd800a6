"""How a source's field is described; its StructType (``gridstead.schema``) and the data dictionary come from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceField:
    """One field of a producer's record.

    ``type`` is Spark's name of it, as one reads it from JSON without loss; ``unit`` is "" where it has none; ``origin``
    says who sets it; ``becomes`` names the fields of the normalised event that it goes into ("" : it is not read).
    """

    name: str
    type: str
    unit: str
    meaning: str
    origin: str
    becomes: str = ""
    required: bool = False
