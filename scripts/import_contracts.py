"""The kind of import contract that pyproject.toml uses beside import-linter's own."""

from typing import Any

from grimp import ImportGraph
from importlinter import ContractCheck
from importlinter.contracts.forbidden import ForbiddenContract


class ForbiddenIfPresent(ForbiddenContract):
    """A `forbidden` contract that warns of a package module which does not exist, and goes on.

    The stock contract fails on such a module, so that a contract could not be written before
    the module is. The warning keeps a misspelt name visible.
    """

    type_name = "forbidden_if_present"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Check the modules that exist."""
        absent: set[str] = set()
        for option in ("source_modules", "forbidden_modules"):
            expressions: set[Any] = getattr(self, option)
            missing = {one for one in expressions if is_absent(one.expression, graph)}
            setattr(self, option, expressions - missing)
            absent |= {one.expression for one in missing}
        result = super().check(graph, verbose)
        result.warnings += [f"{name} does not exist (yet)" for name in sorted(absent)]
        return result


def is_absent(expression: str, graph: ImportGraph) -> bool:
    """Whether the expression names one module of the package that the graph does not have."""
    internal = expression.split(".", maxsplit=1)[0] == "tesazure"
    return internal and "*" not in expression and expression not in graph.modules
