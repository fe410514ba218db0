"""Write what compose.yaml's services share into the directory given, unless it is there.

`postgres-password` is read by PostgreSQL's image, `tesazure.toml` by the server. Both are in a
volume of their own, which is mounted where they are needed and nowhere else; they are in no
variable, so that `docker inspect` shows none.
"""

import base64
import secrets
import sys
from pathlib import Path


def keep(file: Path, text: str) -> None:
    """Make it, whole or not at all, for PostgreSQL's own user and the server's, whoever it is."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o444)
    new.rename(file)


directory = Path(sys.argv[1])
password, settings = directory / "postgres-password", directory / "tesazure.toml"
if not password.exists():
    keep(password, secrets.token_urlsafe(32))
if not settings.exists():
    url = f"postgresql://tesazure:{password.read_text()}@postgres/tesazure"
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    keep(settings, f'database_url = "{url}"\nsecrets_key = "{key}"\n')
