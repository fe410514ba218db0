"""How a command ends: its exit code, and the error that carries one to the top."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Exit codes of every verb."""

    OK = 0
    NOT_COMPLETE = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    REFUSED = 5
    DENIED = 6
    FULL = 7
    SIGN_IN = 8
    TIMED_OUT = 124
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS: dict[Code, str] = {
    Code.OK: "done; with `wait` and `run --wait`: every task is COMPLETE",
    Code.NOT_COMPLETE: "a task ended in another state than COMPLETE, `doctor` found a fault, or a"
    " transfer failed in a way that has no code here",
    Code.USAGE: "the command line, a setting or a file given is wrong",
    Code.UNREACHABLE: "no server answers, or `serve` cannot have its port, data or Key Vault;"
    " `transfer`: storage does not answer, after all retries",
    Code.NOT_FOUND: "no such task, executor or stream; `transfer`: nothing is at the URL or path",
    Code.REFUSED: "the server refused the request; what is wrong is printed field by field",
    Code.DENIED: "you may not do this: the server names the role that is missing, or the budget"
    " that is spent; `transfer`: permission denied, by storage or by this machine",
    Code.FULL: "`transfer`: the disk is full",
    Code.SIGN_IN: "the server asks for a sign-in, or the token shown to it is no longer good:"
    " `tesazure login`",
    Code.TIMED_OUT: "`wait --timeout` ran out; the tasks go on",
    Code.INTERRUPTED: "interrupted with Ctrl-C; tasks go on, transfers leave no half file",
    Code.TERMINATED: "`transfer`: ended by SIGTERM, as by Ctrl-C",
}
"""One line for each code; the documentation prints this table."""


class Failure(Exception):
    """Ends the command with `code`, after `message` and each of `details` on standard error."""

    def __init__(self, code: Code, message: str, *details: str) -> None:
        super().__init__(message)
        self.code = code
        self.details = details
