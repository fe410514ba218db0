"""A table of the samples' statistics."""

import json
from pathlib import Path

lines = ["sample\treads\tbases\tgc"]
for name in snakemake.input:  # noqa: F821 - Snakemake's own name
    found = json.loads(Path(name).read_text())
    lines.append("\t".join([Path(name).stem, *map(str, found.values())]))
Path(snakemake.output[0]).write_text("\n".join(lines) + "\n")  # noqa: F821
