"""The stream's memory of identities: which rows of an increment of the log count, within a horizon of log time."""

from gridstead.identity.index import Changes, IdentityIndex, IdentityIndexError, Position, Positions

__all__ = ["Changes", "IdentityIndex", "IdentityIndexError", "Position", "Positions"]
