"""Access tokens of a Google service account. With google-auth, which the extra `gcs` installs."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tesazure.errors import StorageError, StorageUnavailable
from tesazure.trust import authorities

GOOD_S = 55 * 60.0
"""Seconds that a token is good for when it is handed out. Google gives none for above an hour."""
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_"
_TIMEOUT_S = 20.0


class GcsTokens:
    """Gets tokens for a service account, and keeps each for its first minutes: what is handed out
    is to last. May be used from several threads at once."""

    def __init__(
        self, credentials_file: Path, ca_bundle: str = "", *, writing: bool = False
    ) -> None:
        """`writing`: whether they are to write too."""
        self._scope = f"{_SCOPE}{'write' if writing else 'only'}"
        self._file = credentials_file
        self._ca_bundle = ca_bundle
        self._lock = threading.Lock()
        self._credentials: Any = None

    def token(self) -> str:
        """A token good for 55 minutes at least, an hour at most: Google gives no longer ones.
        Raises StorageUnavailable when Google cannot be asked, StorageError when it refuses."""
        try:
            from google.auth import exceptions
        except ImportError as error:
            text = "gs:// with an account needs google-auth: pip install 'tesazure[gcs]'"
            raise StorageError(text) from error
        with self._lock:
            try:
                if self._credentials is None:
                    self._credentials = self._load()
                if not self._lasts():
                    self._refresh()
            except exceptions.TransportError as error:
                text = "Google's token service cannot be reached"
                raise StorageUnavailable(
                    f"{text}: {type(error.__cause__ or error).__name__}"
                ) from error
            except exceptions.GoogleAuthError as error:
                kind = StorageUnavailable if error.retryable else StorageError
                text = "Google gives no token for the account in GCS_CREDENTIALS_FILE"
                raise kind(f"{text}: {error.args[0] if error.args else error}") from error
            except (OSError, ValueError) as error:
                text = f"GCS_CREDENTIALS_FILE cannot be used: {type(error).__name__}"
                raise StorageError(text) from error
            return str(self._credentials.token)

    def _lasts(self) -> bool:
        expiry = self._credentials.expiry  # in UTC, without saying so
        needed = datetime.now(UTC) + timedelta(seconds=GOOD_S)
        return bool(expiry and expiry.replace(tzinfo=UTC) >= needed)

    def _load(self) -> Any:
        from google.oauth2 import service_account

        make: Any = service_account.Credentials.from_service_account_file
        return make(str(self._file), scopes=[self._scope])

    def _refresh(self) -> None:
        import requests
        from google.auth.transport.requests import Request

        with requests.Session() as session:
            session.trust_env = False  # no proxies that the environment names
            session.verify = authorities(self._ca_bundle)
            request = Request(session)

            def send(*arguments: Any, **options: Any) -> Any:
                options["timeout"] = _TIMEOUT_S
                return request(*arguments, **options)

            self._credentials.refresh(send)
