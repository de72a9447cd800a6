"""Spark applications: the stream, and the batch over a range of days."""
