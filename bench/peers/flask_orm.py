"""Flask-HTTPAuth with tokens in SQLAlchemy's ORM; as a program it stores some and prints a header's value for each."""

import hashlib
import json
import os
import secrets
import sys

from flask import Flask, jsonify
from flask_httpauth import HTTPTokenAuth
from sqlalchemy import create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

ANSWER = json.loads(os.environ["PEER_ANSWER"])
app = Flask(__name__)
auth = HTTPTokenAuth()
engine = create_engine(f"sqlite:///{os.environ['PEER_DATABASE']}")
event.listen(engine, "connect", lambda driver, _: driver.execute("PRAGMA journal_mode = WAL"))


class Base(DeclarativeBase):
    pass


class Token(Base):
    __tablename__ = "tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(unique=True)
    owner: Mapped[str]


def digest(text):
    return hashlib.sha256(text.encode()).digest()


@auth.verify_token
def verify(text):
    with Session(engine) as session:
        return session.scalar(select(Token).where(Token.digest == digest(text)))


@app.get("/api/v1/me")
@auth.login_required
def me():
    return jsonify(ANSWER)


@app.get("/healthz")
def healthz():
    return ""


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    texts = [secrets.token_urlsafe() for _ in range(int(sys.argv[1]))]
    with Session(engine) as session:
        session.add_all(Token(digest=digest(text), owner=f"owner {n}") for n, text in enumerate(texts))
        session.commit()
    print(*(f"Bearer {text}" for text in texts), sep="\n")
