"""What goes wrong, said so that the reader knows what to do next."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


class LabError(Exception):
    """A sentence that says what is wrong and where, and the command to type next."""

    def __init__(self, problem: str, remedy: str) -> None:
        """Keep both; together they are the message."""
        super().__init__(f"{problem}. Next: {remedy}")


def run(command: Sequence[str], given: str | None = None, timeout_s: float = 30) -> str:
    """Run a program and return what it printed; where it fails, say what it said."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise LabError(f"the program {command[0]} is missing", "lab.py base, which names the packages to install") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(command)}` did not end within {timeout_s:.0f} s", "lab.py status, or lab.py destroy") from None
    if done.returncode != 0:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:]) or "nothing"
        raise LabError(f"`{' '.join(command)}` ended with {done.returncode} and said: {said}", "lab.py status, or lab.py destroy")
    return done.stdout
