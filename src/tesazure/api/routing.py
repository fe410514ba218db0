"""Path -> route. Fixed paths by one look-up, templates by a few regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tesazure.api.replies import Route


class Routes:
    """All routes of the application."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.all = tuple(routes)
        self._fixed = {route.path: route for route in self.all if "{" not in route.path}
        self._templates = [(_compiled(r.path), r) for r in self.all if "{" in r.path]

    def find(self, path: str, method: str) -> tuple[Route, dict[str, str]] | None:
        """The route of a path and its parameters: one that has the method, if there is any. Slashes
        that clients double or append do not matter."""
        wanted = "GET" if method == "HEAD" else method
        found = self._find(path, wanted)
        if found is None and ("//" in path or path.endswith("/")):
            return self._find(re.sub("/+", "/", path).rstrip("/"), wanted)
        return found

    def _find(self, path: str, method: str) -> tuple[Route, dict[str, str]] | None:
        route = self._fixed.get(path)
        if route is not None:
            return route, {}
        first = None
        for pattern, templated in self._templates:
            match = pattern.fullmatch(path)
            if match:
                found = templated, match.groupdict()
                # `x:cancel` may be a workflow's whole id: to be looked at, not to be canceled.
                if method in templated.handlers:
                    return found
                first = first or found
        return first


def _compiled(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    # The id of a workflow is whatever its engine calls it.
    escaped = escaped.replace("{workflow}", "(?P<workflow>.+)")
    return re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/:]+)", escaped), re.DOTALL)
