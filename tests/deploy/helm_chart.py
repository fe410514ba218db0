"""Lint and render a chart by Helm's own library, and hold it against Kubernetes' schemas.

    python helm_chart.py CHART KUBERNETES_VERSION… < QUESTION > ANSWER

Run by the interpreter of `venvs.python("helm")`. QUESTION is JSON: `values`, the text of a values
file, and the release's `name`. ANSWER is JSON: `refused` with Helm's reason; or `lint`, the
messages of `helm lint --strict`, `manifests`, `notes`, and `invalid`, what no schema allows.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import helm_python as helm
import kubernetes_validate
import yaml

NAMESPACE = "tes"


def answer(chart: str, versions: list[str], values: dict[str, Any], name: str) -> dict[str, Any]:
    """What the module's docstring says."""
    try:
        with helm.Chart.load(chart) as loaded:
            rendered = loaded.render(values, name=name, namespace=NAMESPACE)
    except (helm.HelmRenderError, helm.HelmValuesError) as error:
        return {"refused": str(error)}
    report = helm.lint(chart, values, strict=True, namespace=NAMESPACE, kube_version=versions[-1])
    notes = [text for path, text in rendered.items() if path.endswith("NOTES.txt")]
    manifests = [
        document
        for path, text in sorted(rendered.items())
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    return {
        "lint": [*report["errors"], *(each["error"] for each in report["messages"])],
        "manifests": manifests,
        "notes": notes[0],
        "invalid": [said for version in versions for said in invalid(manifests, version)],
    }


def invalid(manifests: list[dict[str, Any]], version: str) -> list[str]:
    """What a version of Kubernetes would not know, or not take."""
    found = []
    for manifest in manifests:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.path))
            found.append(f"{version}: {manifest['kind']} {where}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            found.append(f"{version}: {error.message}")
    return found


def main(chart: str, *versions: str) -> None:
    """Answer."""
    question = json.load(sys.stdin)
    values = helm.values_from_yaml(question["values"])
    json.dump(answer(chart, list(versions), values, question["name"]), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
