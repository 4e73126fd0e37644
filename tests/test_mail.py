"""Mails as a real SMTP server receives them, and as a folder keeps them."""

import email
import smtplib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import Message
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from portal.mail import Folder, Letter, NeverTaken, Smtp
from tests.servers import free_port

SENDER = "Latchkey <keys@example.org>"
LETTER = Letter(
    "mail_1", "zoë@example.org", "“CRM sync” läuft ab", "Hällo,\n\nit expires.\n", datetime(2026, 1, 2, tzinfo=UTC)
)


class Inbox:
    """What a server received."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.logins: list[bytes] = []
        self.answers: dict[str, str] = {}  # to a step, where it is not 250 OK

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, sender: str, options: Any) -> str:  # noqa: N802 - aiosmtpd calls it so
        envelope.mail_from = sender
        return self.answers.get("MAIL", "250 OK")

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, recipient: str, options: Any) -> str:  # noqa: N802
        envelope.rcpt_tos.append(recipient)
        return self.answers.get("RCPT", "250 OK")

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.messages.append(email.message_from_bytes(envelope.content, policy=default))
        return self.answers.get("DATA", "250 OK")

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.logins.append(data.password)
        return AuthResult(success=True)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@contextmanager
def listening(inbox: Inbox, host: str) -> Iterator[str]:
    """Run an SMTP server without encryption; give its address."""
    port = free_port()
    controller = Controller(inbox, hostname=host, port=port, authenticator=inbox.authenticate, auth_require_tls=False)
    controller.start()
    yield f"{host}:{port}"
    controller.stop()


@pytest.fixture
def server(inbox: Inbox) -> Iterator[str]:
    """An SMTP server on this machine."""
    with listening(inbox, "127.0.0.1") as address:
        yield address


def test_a_server_receives_the_mail_as_it_was_written(server: str, inbox: Inbox) -> None:
    Smtp(f"smtp://{server}", SENDER).send(LETTER)
    [message] = inbox.messages
    assert message["Subject"] == LETTER.subject
    assert message["To"] == LETTER.recipient
    assert message["From"] == SENDER
    assert message["Message-ID"] == "<mail_1@example.org>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content().replace("\r\n", "\n") == LETTER.body  # type: ignore[attr-defined]


def test_a_password_in_the_address_signs_in(server: str, inbox: Inbox) -> None:
    Smtp(f"smtp://portal:sec%40ret@{server}", SENDER).send(LETTER)
    assert inbox.logins == [b"sec@ret"]


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("DATA", "452 Too much mail"),
        ("RCPT", "451 Come again"),
        ("RCPT", "554 5.7.1 Relay access denied"),
        ("RCPT", "530 5.7.0 Must issue a STARTTLS command first"),
        ("DATA", "503 Bad sequence"),
        ("MAIL", "550 You may not send here"),
    ],
)
def test_a_refusal_of_the_server_is_trouble(step: str, answer: str, server: str, inbox: Inbox) -> None:
    """What is wrong with the sender is no mail's fault: an operator can mend it."""
    inbox.answers[step] = answer
    with pytest.raises((OSError, smtplib.SMTPException)):
        Smtp(f"smtp://{server}", SENDER).send(LETTER)


@pytest.mark.parametrize(
    ("step", "answer"),
    [("RCPT", "550 no such user"), ("RCPT", "550 5.1.1 no such user"), ("DATA", "552 5.3.4 too large")],
)
def test_a_recipient_or_content_that_the_server_refuses_for_good_is_told_apart(
    step: str, answer: str, server: str, inbox: Inbox
) -> None:
    inbox.answers[step] = answer
    with pytest.raises(NeverTaken, match=answer):
        Smtp(f"smtp://{server}", SENDER).send(LETTER)


def test_a_server_that_is_away_is_trouble() -> None:
    with pytest.raises((OSError, smtplib.SMTPException)):
        Smtp(f"smtp://127.0.0.1:{free_port()}", SENDER).send(LETTER)


def test_a_password_is_not_sent_to_another_machine_without_encryption(inbox: Inbox) -> None:
    with listening(inbox, "127.0.0.2") as elsewhere, pytest.raises(smtplib.SMTPException, match="no encryption"):
        Smtp(f"smtp://portal:secret@{elsewhere}", SENDER).send(LETTER)
    assert inbox.logins == []


def test_a_subject_cannot_add_a_header(server: str, inbox: Inbox) -> None:
    letter = Letter("mail_2", "max@acme.test", "Hello\r\nBcc: all@acme.test", "", LETTER.created_at)
    with pytest.raises(ValueError):
        Smtp(f"smtp://{server}", SENDER).send(letter)
    assert inbox.messages == []


def test_a_folder_keeps_mails_for_its_owner_alone(tmp_path: Path) -> None:
    Folder(tmp_path / "mail", SENDER).send(LETTER)
    [path] = (tmp_path / "mail").iterdir()
    assert path.suffix == ".eml"
    assert path.stat().st_mode & 0o077 == 0
    assert email.message_from_bytes(path.read_bytes(), policy=default)["Subject"] == LETTER.subject


@pytest.mark.parametrize("subject", ["boom =?us-ascii?q?=ff?=é", "=?utf-8?q?=0D=0ABcc:_x@evil.test?="])
def test_what_looks_like_an_encoded_word_is_sent_as_it_was_typed_and_adds_no_header(
    subject: str, server: str, inbox: Inbox
) -> None:
    Smtp(f"smtp://{server}", SENDER).send(Letter("mail_3", "max@acme.test", subject, "", LETTER.created_at))
    [message] = inbox.messages
    assert "Bcc" not in message
    assert message["Subject"].replace("= ?", "=?") == subject
