"""What is in an archive of playbooks/support-bundle.yml."""

from __future__ import annotations

import tarfile
from pathlib import Path


def texts_of(bundle: Path) -> dict[tuple[str, str], str]:
    """Every file of an archive by host and name; the archive must be its owner's alone."""
    assert bundle.stat().st_mode & 0o077 == 0
    texts = {}
    with tarfile.open(bundle) as outer:
        for entry in outer.getmembers():
            if entry.isfile():
                with tarfile.open(fileobj=outer.extractfile(entry)) as inner:
                    for file in inner.getmembers():
                        stream = inner.extractfile(file)
                        assert stream
                        texts[Path(entry.name).name.removesuffix(".tar.gz"), file.name] = stream.read().decode()
    return texts
