"""What is said about a setting beside its name, type and default."""

from __future__ import annotations

import msgspec


class Help(msgspec.Struct, frozen=True):
    """What a setting means, in a sentence. A secret's value is never shown. A `live` one that
    changes in the file or the Key Vault changes the running server, unless `settings.reloading`
    says otherwise."""

    text: str
    secret: bool = False
    live: bool = False
