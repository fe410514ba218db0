#!/bin/sh
# ladder.sh DIRECTORY
#
# Sorts the fragments that digest.sh made by length, longest first, as they lie on a gel:
# a table on standard output, their checksums in DIRECTORY/SHA256SUMS. POSIX tools and sha256sum.
set -eu

cd "$1/fragments"
printf 'length\tGC %%\tfragment\n'
awk '/^>/ { sub(/length=/, "", $2); sub(/gc=/, "", $3); print $2 "\t" $3 "\t" substr($1, 2) }' *.fa |
    sort -k 1,1nr
sha256sum -- *.fa > ../SHA256SUMS
