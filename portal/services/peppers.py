"""Whether the settings hold the secrets under which the stored keys were hashed.

A wrong one is no error anywhere: every key is unknown under it. So the database keeps a proof of each, by its id.
"""

from collections.abc import Sequence

from sqlalchemy import func, select

from portal.rules.credentials import Keyring
from portal.store.database import Session
from portal.store.models import ApiKey, PepperProof


def note(session: Session, keyring: Keyring) -> Sequence[str]:
    """Keep a proof of each pepper that has none yet; give the ids of those that had another secret before."""
    kept = {row.id: row.proof for row in session.scalars(select(PepperProof))}
    session.add_all(PepperProof(id=each.id, proof=each.proof) for each in keyring.peppers if each.id not in kept)
    return [each.id for each in keyring.peppers if kept.get(each.id, each.proof) != each.proof]


def lost_keys(session: Session, keyring: Keyring) -> dict[str, int]:
    """Count the keys that could be used but for their pepper, by its id: it is missing, or its secret is another."""
    kept = {row.id: row.proof for row in session.scalars(select(PepperProof))}
    good = [each.id for each in keyring.peppers if kept.get(each.id, each.proof) == each.proof]
    lost = (ApiKey.revoked_at.is_(None), ApiKey.pepper_id.not_in(good))
    rows = session.execute(select(ApiKey.pepper_id, func.count()).where(*lost).group_by(ApiKey.pepper_id))
    return {row[0]: row[1] for row in rows}
