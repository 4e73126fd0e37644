"""Handing mails over: to an SMTP server, or, where none is set, to a folder in which they can be read."""

import os
import re
import smtplib
import ssl
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from pathlib import Path
from urllib.parse import unquote, urlsplit

from portal.settings import Settings

TIMEOUT = 10  # seconds for each step of a conversation with an SMTP server


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail to be handed over; its id stays the same when it is tried again, so that receivers can tell."""

    id: str
    recipient: str
    subject: str
    body: str
    created_at: datetime


class NeverTaken(Exception):
    """The server refuses this mail for good; one that is sent again is refused again."""


class Mailer(ABC):
    """Sends mails from one address."""

    def __init__(self, sender: str) -> None:
        self._sender = sender

    @abstractmethod
    def send(self, letter: Letter) -> None:
        """Hand one mail over; raises when it was not taken, NeverTaken when it never will be."""

    def _message(self, letter: Letter) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self._sender
        local, _, domain = letter.recipient.rpartition("@")
        message["To"] = Address(username=local, domain=domain)
        # What people typed may look like an encoded word of RFC 2047, which would be read as one.
        message["Subject"] = letter.subject.replace("=?", "= ?")
        message["Date"] = format_datetime(letter.created_at)
        message["Message-ID"] = f"<{letter.id}@{parseaddr(self._sender)[1].rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday replies
        message.set_content(letter.body)
        return message


class Smtp(Mailer):
    """Over `smtp://[user:password@]host[:port]`, with STARTTLS where the server offers it, or `smtps://`.

    A password never goes over a connection that is not encrypted, but to this machine itself.
    """

    def __init__(self, url: str, sender: str) -> None:
        super().__init__(sender)
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._is_tls = parts.scheme == "smtps"
        self._port = parts.port or (465 if self._is_tls else 25)
        self._login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None

    def send(self, letter: Letter) -> None:
        """Hand one mail over to the server."""
        context = ssl.create_default_context()
        if self._is_tls:
            server: smtplib.SMTP = smtplib.SMTP_SSL(self._host, self._port, timeout=TIMEOUT, context=context)
        else:
            server = smtplib.SMTP(self._host, self._port, timeout=TIMEOUT)
        with server:
            server.ehlo()
            is_safe = self._is_tls or self._host in ("localhost", "127.0.0.1", "::1")
            if not self._is_tls and server.has_extn("starttls"):
                server.starttls(context=context)
                is_safe = True
            if self._login:
                if not is_safe:
                    raise smtplib.SMTPException("the server offers no encryption, so the password was not sent")
                server.login(*self._login)
            try:
                server.send_message(self._message(letter), to_addrs=[letter.recipient])
            except smtplib.SMTPRecipientsRefused as error:
                [(code, why)] = error.recipients.values()
                _raise_if_for_good(code, why)
                raise
            except smtplib.SMTPDataError as error:
                _raise_if_for_good(error.smtp_code, error.smtp_error)
                raise


def _raise_if_for_good(code: int, why: bytes | str) -> None:
    """Raise NeverTaken for a server's lasting refusal (RFC 5321, section 4.2) of this address or this content.

    The server's own word on what is wrong counts where it has one (RFC 3463: 5.1 and 5.2 are the address, 5.3 and 5.6
    the content). All else, as a relay that is denied to us, is for the operator to mend, and the mail waits.
    """
    text = why.decode(errors="replace") if isinstance(why, bytes) else why
    told = re.match(r"5\.([0-9]{1,3})\.", text)
    if told[1] in ("1", "2", "3", "6") and 500 <= code < 600 if told else code in (550, 551, 552, 553, 554):
        raise NeverTaken(f"{code} {text[:300]}")


class Folder(Mailer):
    """Into a folder of `.eml` files that nobody else on the machine can read."""

    def __init__(self, folder: Path, sender: str) -> None:
        super().__init__(sender)
        self._folder = folder

    def send(self, letter: Letter) -> None:
        """Write one mail down."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{letter.created_at:%Y%m%dT%H%M%S}-{letter.id}.eml"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(bytes(self._message(letter)))


def mailer(settings: Settings) -> Mailer:
    """Give the way in which this portal's mail goes."""
    if settings.smtp_url:
        return Smtp(settings.smtp_url, settings.mail_from)
    return Folder(settings.mail_folder, settings.mail_from)
