"""Check a CycloneDX 1.6 document on standard input against the standard's own schema; exit code 1
if it does not conform."""

import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read()):
    sys.exit(str(problem))
