"""Gridstead: monitoring of data transfers and data access on a computing grid."""

__version__ = "0.1.0"
