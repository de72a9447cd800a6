"""Filter plug-in: what an error of AWS means for who runs the playbook."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ERRORS = Path(__file__).resolve().parents[1] / "module_utils" / "gridstead_ec2" / "errors.py"


class FilterModule:
    """Filters of the role ec2."""

    def filters(self):
        """Return the filters by name."""
        specification = spec_from_file_location("gridstead_ec2_errors", ERRORS)
        errors = module_from_spec(specification)
        specification.loader.exec_module(errors)
        return {"gridstead_ec2_hint": errors.hint}
