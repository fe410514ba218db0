"""Number, bases and GC content of the reads of a gzipped FASTQ file."""

import gzip
import json
from pathlib import Path

with gzip.open(snakemake.input[0], "rt") as reads:  # noqa: F821 - Snakemake's own name
    sequences = [line.strip() for number, line in enumerate(reads) if number % 4 == 1]

bases = sum(map(len, sequences))
gc = sum(sequence.count("G") + sequence.count("C") for sequence in sequences)
result = {"reads": len(sequences), "bases": bases, "gc": gc}
Path(snakemake.output[0]).write_text(json.dumps(result))  # noqa: F821
Path(snakemake.log[0]).write_text(f"{len(sequences)} reads\n")  # noqa: F821
