"""Whether the settings hold the secrets under which the stored keys were hashed.

A wrong one is no error anywhere: every key is unknown under it. So the database keeps a proof of each, by its id.
"""

from collections.abc import Sequence

from sqlalchemy import exists, func, select
from sqlalchemy.dialects import postgresql, sqlite

from portal.rules.credentials import Keyring
from portal.store.database import Session
from portal.store.models import ApiKey, PepperProof, Verifier


def note(session: Session, keyring: Keyring) -> Sequence[str]:
    """Keep a proof of each pepper, by its id; give the ids of those that stored digests have under another secret."""
    insert = sqlite.insert if session.connection().dialect.name == "sqlite" else postgresql.insert
    proofs = [{"id": each.id, "proof": each.proof} for each in keyring.peppers]
    session.execute(insert(PepperProof).values(proofs).on_conflict_do_nothing())  # hosts that start together
    kept = {row.id: row for row in session.scalars(select(PepperProof))}
    wrong = []
    for each in keyring.peppers:
        if kept[each.id].proof == each.proof:
            continue
        if any(session.scalar(select(exists().where(table.pepper_id == each.id))) for table in (ApiKey, Verifier)):
            wrong.append(each.id)
        else:
            kept[each.id].proof = each.proof  # nothing was hashed under what it was
    return wrong


def lost_keys(session: Session, keyring: Keyring) -> dict[str, int]:
    """Count the keys that could be used but for their pepper, by its id: it is missing, or its secret is another."""
    kept = {row.id: row.proof for row in session.scalars(select(PepperProof))}
    good = [each.id for each in keyring.peppers if kept.get(each.id, each.proof) == each.proof]
    lost = (ApiKey.revoked_at.is_(None), ApiKey.pepper_id.not_in(good))
    rows = session.execute(select(ApiKey.pepper_id, func.count()).where(*lost).group_by(ApiKey.pepper_id))
    return {row[0]: row[1] for row in rows}
