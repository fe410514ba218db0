"""What the settings say of signing in."""

from __future__ import annotations

from tesazure.settings import Settings
from tesazure.signin.bearer import Trusted
from tesazure.signin.gate import SignIn


def sign_in_of(s: Settings) -> SignIn:
    """How callers sign in on a server with these settings."""
    trusted = None
    if s.aad_verify:
        trusted = Trusted(
            authority=s.aad_authority,
            tenants=s.aad_tenant_id,
            issuer=s.aad_issuer,
            audiences=s.aad_audience,
            roles_required=s.aad_roles_required,
            ca_bundle=s.ca_bundle,
        )
    return SignIn(
        trusted=trusted,
        api_tokens=s.api_tokens,
        restrictions=s.task_access_restrictions,
        client_id=s.aad_client_id,
        open_paths=frozenset({"/metrics"}) if s.metrics_open else frozenset(),
    )
