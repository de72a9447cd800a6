"""Smoke tests: every part of a running appliance does real work, is compared with what it must give, and is cleaned up.

``runner`` runs the checks and explains failures, ``probe`` is what each of them is given, ``junit`` writes the result
for machines. The checks are one module each; ``CHECKS`` names them in the order of what they need.
"""

from gridstead.smoke.runner import CHECKS, Outcome, run

__all__ = ["CHECKS", "Outcome", "run"]
