"""`[auth]`: who may upload and download."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tusd_py.config.sections.base import OptionalPath, OptionalSecret, OptionalText, Section
from tusd_py.config.units import Seconds


class JwtConfig(Section):
    """Bearer tokens (RFC 7519) in `Authorization`."""

    secret: OptionalSecret = Field(
        default=None, description="HS256 key of at least 32 bytes (HS384: 48, HS512: 64); excludes jwks_file"
    )
    jwks_file: OptionalPath = Field(default=None, description="public keys as a JWK set (RFC 7517)")
    algorithms: list[Literal["HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA"]] = Field(
        default=["HS256"], description="accepted algorithms; with jwks_file, those of its keys"
    )
    issuer: OptionalText = Field(default=None, description="required iss; empty: any")
    audience: OptionalText = Field(default=None, description="required aud; empty: any")
    require_exp: bool = Field(default=True, description="false: accept tokens without exp, which never expire")
    create_scope: str = Field(default="", description="scope that a token needs to create uploads; empty: none")
    read_any_scope: str = Field(
        default="files:read:any", description="scope that may see and download everybody's uploads"
    )
    admin_scope: str = Field(
        default="files:admin",
        description="scope that may see, transfer and remove everybody's uploads, also by force",
    )
    leeway: Seconds = Field(default=30, ge=0, description="tolerated difference between clocks")
    resume_grace: Seconds = Field(
        default=86400,
        ge=0,
        description="how long an expired token may still resume its owner's uploads",
    )


class AuthConfig(Section):
    """Who may upload and download."""

    mode: Literal["none", "jwt"] = Field(default="none", description="none: everybody; only on loopback")
    allow_anonymous: bool = Field(
        default=False, description="true: allow mode = none on an address that others can reach"
    )
    jwt: JwtConfig = Field(default_factory=JwtConfig)
