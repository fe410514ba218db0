#!/bin/sh
# digest.sh GENOME.fa DIRECTORY
#
# Cuts each sequence of a FASTA file where the enzyme HindIII does (A^AGCTT), writes one FASTA file
# per fragment into DIRECTORY/fragments, and a summary to standard output. Linear DNA. POSIX tools.
set -eu

mkdir -p "$2/fragments"
awk -v directory="$2/fragments" '
    function gc(dna) { return gsub(/[GC]/, "", dna) }  # dna is a copy
    function cut(    pieces, n, i, dna, at, file) {
        if (sequence == "") return
        n = split(sequence, pieces, "AAGCTT")
        at = 1
        for (i = 1; i <= n; i++) {
            # The site is cut after its first letter, so that each side keeps its part.
            dna = (i > 1 ? "AGCTT" : "") pieces[i] (i < n ? "A" : "")
            file = sprintf("%s/%s_%02d.fa", directory, name, i)
            printf ">%s:%d-%d length=%d gc=%.2f\n", \
                name, at, at + length(dna) - 1, length(dna), 100 * gc(dna) / length(dna) > file
            for (j = 1; j <= length(dna); j += 70) print substr(dna, j, 70) > file
            close(file)
            at += length(dna)
        }
        sequences++
        fragments += n
        bases += length(sequence)
        strong += gc(sequence)
    }
    /^>/ { cut(); name = substr($1, 2); gsub(/[^A-Za-z0-9._-]/, "_", name); sequence = ""; next }
    { sequence = sequence toupper($0) }
    END {
        cut()
        printf "sequences  %d\nbases      %d\n", sequences, bases
        printf "GC         %.2f %%\nfragments  %d\n", 100 * strong / bases, fragments
    }
' "$1"
