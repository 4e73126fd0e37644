"""Token introspection (RFC 7662): somebody's own product asks what a key that it was sent may do."""

from typing import Any

from flask import Blueprint, Response, g, make_response, request

from portal.rules.errors import KeyRefused
from portal.services import verifiers
from portal.services.usage import Request
from portal.services.verifiers import Known
from portal.web.answers import oauth_error
from portal.web.declared import Answer, declares
from portal.web.door import client_label
from portal.web.front import EVEN
from portal.web.guards import with_verifier
from portal.web.http import portal, reading
from portal.web.shapes import INTROSPECTION, OAUTH_ERROR, TOKEN

oauth = Blueprint("oauth", __name__, url_prefix="/oauth")

_FORM = "application/x-www-form-urlencoded"


@oauth.post("/introspect")
@declares(
    "Introspect a key",
    "For services of your own",
    Answer(200, "What the key may do now; of any that does not work only that.", whole=INTROSPECTION),
    Answer(400, "There is not exactly one token.", whole=OAUTH_ERROR),
    Answer(401, "The verifier is missing, wrong or revoked.", whole=OAUTH_ERROR, headers=("WWW-Authenticate",)),
    Answer(413, "The form is too long.", whole=OAUTH_ERROR),
    Answer(429, "Too many bad verifiers came from your network.", whole=OAUTH_ERROR, headers=("Retry-After",)),
    Answer(500, "Something broke on our side.", whole=OAUTH_ERROR),
    Answer(503, "We cannot say right now whether the key works.", whole=OAUTH_ERROR, headers=("Retry-After",)),
    body=TOKEN,
    note="Asking counts as a use of the key, on its pages too, but not against its rate limits, which are for your "
    "product to keep. Ask for each request: an answer that you keep does not know of a key that was stopped since.",
)
@with_verifier
def introspect(verifier: Known) -> Response:
    """Say what a key of the verifier's workspace may do now; of everything else only that it is not active.

    The form has `token`; other parameters, such as `token_type_hint`, are let be. A database that cannot be asked is a
    503: a key that works is never called inactive.
    """
    tokens = request.form.getlist("token") if request.mimetype == _FORM else []
    if len(tokens) != 1 or not tokens[0]:
        return make_response(oauth_error(400, "Send a form with one token."), 400)
    return make_response(_about(tokens[0], verifier))


def _about(token: str, verifier: Known) -> dict[str, Any]:
    here = portal()
    if here.settings.keyring.format.parse(token) is None:
        return {"active": False}
    try:
        caller = here.key_check.check(f"Bearer {token}", account_id=verifier.workspace_id, now=g.now)
    except KeyRefused as error:
        request.environ[EVEN] = True
        if error.key_pk is not None:
            here.usage.refused(_use(error.key_pk), str(error.refusal), error.had)
        return {"active": False}
    with reading() as session:
        issued_at = verifiers.issued_at(session, caller.key_pk)
    here.usage.accepted(_use(caller.key_pk), is_first=caller.is_unused, new_digest=caller.new_digest)
    base_url = here.settings.base_url
    return {
        "active": True,
        "scope": " ".join(caller.reach.effective_texts),
        "client_id": caller.key_id,
        "sub": caller.member_id,
        "username": caller.member_name,
        "token_type": "Bearer",
        **({"exp": int(caller.ends_at.timestamp())} if caller.ends_at else {}),
        "iat": int(issued_at.timestamp()),
        "iss": base_url,
        "aud": base_url,
        "environment": caller.environment,
        "workspace": caller.workspace_id,
    }


def _use(key_pk: int) -> Request:
    environ = request.environ
    return Request(
        *(key_pk, g.now, g.request_id, environ["REQUEST_METHOD"], environ["PATH_INFO"], 200, ""),
        address=environ["REMOTE_ADDR"] or "",
        client=client_label(environ),
    )
