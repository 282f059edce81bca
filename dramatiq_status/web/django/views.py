"""The view, which the setting ``DRAMATIQ_STATUS`` configures."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.http import HttpResponse
from django.utils.module_loading import import_string
from django.views.decorators.http import require_safe

from ..exposure import ALL
from ..tokens import DEFAULT_EXPIRY, TokenSigner
from ..wsgi import StatusViews

_NAMES = ("AUTHORIZE", "FIELDS", "TOKENS", "TOKEN_EXPIRY")


@require_safe  # type: ignore[misc,untyped-decorator,unused-ignore]
def status(request: Any, path: str) -> Any:
    """Answer with a status, or with a file of the element."""
    body, code, headers = _views().answer(path, request)
    return HttpResponse(body, status=code, headers=headers)


def sign(message_id: str) -> str | None:
    """Sign a read token; return None if the setting ``TOKENS`` is off."""
    signer = _signer()
    return (
        None if signer is None else signer.sign(message_id, expires_in=_options().get("TOKEN_EXPIRY", DEFAULT_EXPIRY))
    )


def _options() -> dict[str, Any]:
    found: dict[str, Any] = getattr(settings, "DRAMATIQ_STATUS", {})
    unknown = set(found) - set(_NAMES)
    if unknown:
        raise ImproperlyConfigured(f"DRAMATIQ_STATUS has no setting {min(unknown)!r}; it has {', '.join(_NAMES)}.")
    return found


@lru_cache(maxsize=1)
def _signer() -> TokenSigner | None:
    return TokenSigner(settings.SECRET_KEY) if _options().get("TOKENS", False) else None


@lru_cache(maxsize=1)
def _views() -> StatusViews:
    options = _options()
    authorize = options.get("AUTHORIZE")
    if authorize is None:
        raise ImproperlyConfigured(
            "DRAMATIQ_STATUS['AUTHORIZE'] must be a function of a request and a snapshot, or "
            "its dotted path, as 'dramatiq_status.web.django.owner_or_staff'."
        )
    if isinstance(authorize, str):
        authorize = import_string(authorize)
    return StatusViews(authorize=authorize, fields=options.get("FIELDS", (ALL,)), signer=_signer())


def _forget(*, setting: str, **others: Any) -> None:
    if setting in ("DRAMATIQ_STATUS", "SECRET_KEY"):
        _views.cache_clear()
        _signer.cache_clear()


# Tests change settings.
setting_changed.connect(_forget)
