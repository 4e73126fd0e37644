"""Names, e-mail addresses and local paths as people (and attackers) type them (T-46, T-50, T-52)."""

import unicodedata
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.rules.text import clean_email, clean_line, fold, local_path, read_line

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\u00ad\u180e"

any_text = st.text(st.characters())  # lone surrogates too


# --- Lines ----------------------------------------------------------------------------------------------------------


@given(any_text)
def test_a_clean_line_is_trimmed_composed_and_stays_as_it_is(text: str) -> None:
    line = clean_line(text)
    if line is not None:
        assert line == line.strip()
        assert unicodedata.is_normalized("NFC", line)
        assert clean_line(line) == line


@given(any_text)
def test_nothing_that_breaks_or_hides_survives_in_a_line(text: str) -> None:
    line = clean_line(text) or ""
    assert not {unicodedata.category(character) for character in line} & {"Cc", "Cs", "Cn"}
    assert not set(line) & {*BIDI, "\ufeff"}
    line.encode()  # no lone surrogate


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1))
def test_whatever_is_seen_is_kept(text: str) -> None:
    assert clean_line(f"  {text}\u3000") == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("CRM sync", "CRM sync"),
        ("  CRM sync \n", "CRM sync"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("", ""),
        ("   ", ""),
        ("<div hx-get=/x>", "<div hx-get=/x>"),
        ("'; DROP TABLE api_key; --", "'; DROP TABLE api_key; --"),
        ("مفتاح", "مفتاح"),
        ("鍵 🔑", "鍵 🔑"),
        ("👩\u200d💻 laptop", "👩\u200d💻 laptop"),  # a joiner between things that are seen
    ],
)
def test_a_line_is_kept_but_for_the_space_around_it(typed: str, kept: str) -> None:
    assert clean_line(typed) == kept


@pytest.mark.parametrize(
    "odd",
    [
        "\x00",
        "\x07",
        "\x1b[31m",
        "\n",
        "\r",
        "\t",
        "\x7f",
        "\x85",
        "\u2028",
        "\u2029",
        "\ud800",
        "\udfff",
        "\ufeff",
        "\uffff",
        *"\u0378" + BIDI,
    ],
)
def test_controls_surrogates_and_direction_marks_are_refused_within_a_line(odd: str) -> None:
    assert clean_line(f"CRM{odd}sync") is None


@pytest.mark.parametrize("hidden", [*ZERO_WIDTH, ZERO_WIDTH, "\u200b \u200b", "\u0301", "\ue000"])
def test_a_line_in_which_nothing_is_seen_is_refused(hidden: str) -> None:
    assert clean_line(hidden) is None


@pytest.mark.parametrize(
    ("written", "least", "advice"),
    [
        ("a\x00b", 0, "Enter a note without control characters or hidden text direction marks."),
        (
            "x sk_live_abcdefghABCDEFGH",
            0,
            "This looks like a key. Never write one down here: enter a note that tells why.",
        ),
        (" ", 1, "Enter a note that tells why: 1 to 10 characters."),
        ("e\u0301" * 2, 3, "Enter a note that tells why: 3 to 10 characters."),  # two once composed
        ("x" * 11, 0, "Enter at most 10 characters; this note has 11."),
        ("x" * 10, 0, None),
        ("", 0, None),
    ],
)
def test_a_line_that_cannot_be_taken_says_what_to_do(written: str, least: int, advice: str | None) -> None:
    problems: dict[str, str] = {}
    assert read_line(problems, "note", written, least, 10, "that tells why") == (clean_line(written) or "")
    assert problems.get("note") == advice


def test_a_word_that_begins_like_a_key_is_a_word() -> None:
    problems: dict[str, str] = {}
    name = "billing_live_production"
    assert (read_line(problems, "name", name, 3, 60, "that tells why"), problems) == (name, {})


def test_a_line_of_a_million_characters_is_read_whole() -> None:
    assert clean_line("a" * 1_000_000) == "a" * 1_000_000


@given(st.text(max_size=60))
def test_names_that_differ_in_case_or_composition_only_fold_to_one(name: str) -> None:
    folded = fold(unicodedata.normalize("NFC", name))
    assert fold(folded) == folded
    assert fold(unicodedata.normalize("NFC", unicodedata.normalize("NFD", name))) == folded


@pytest.mark.parametrize(("one", "other"), [("CRM Sync", "crm sync"), ("STRASSE", "straße"), ("ΣΑΣ", "σας")])
def test_names_that_read_the_same_fold_to_one(one: str, other: str) -> None:
    assert fold(one) == fold(other)


# --- E-mail addresses -----------------------------------------------------------------------------------------------

addresses = st.builds("{}@{}".format, st.text(min_size=1, max_size=70), st.text(min_size=1, max_size=200))


@given(addresses | any_text)
def test_a_clean_address_stays_as_it_is_and_fits_its_column(text: str) -> None:
    email = clean_email(text)
    if email is not None:
        assert clean_email(email) == email
        assert len(email) <= 254
        assert email.count("@") == 1


def test_an_address_is_composed_after_its_case_is_folded() -> None:
    email = clean_email("ß\u0301@acme.test")  # folds to ss, and the second s then takes the accent
    assert email is not None
    assert clean_email(email) == email


@pytest.mark.parametrize("typed", ["ana@acme.test", "Ana@ACME.test", "  ana@acme.test ", "ANA@acme.TEST\n"])
def test_one_person_has_one_address_however_it_is_typed(typed: str) -> None:
    assert clean_email(typed) == "ana@acme.test"


@pytest.mark.parametrize(
    "typed",
    [
        "", "ana", "@", "ana@", "@acme.test", "ana@acme@test", "ana acme@acme.test", "ana@acme .test",
        "ana@acme.test\x00", "ana\x00@acme.test", "ana@acme.test\nbcc: max@acme.test", "ana\ud800@acme.test",
        "ana\u202e@acme.test", "a" * 65 + "@acme.test", "ana@" + "a" * 250, "a" * 1_000_000 + "@acme.test",
        "ﬃ" * 64 + "@" + "ﬃ" * 60,  # grows beyond its column when its case is folded
        "ana@acme.test" + " " * 300 + "max",
    ],
)  # fmt: skip
def test_what_cannot_be_an_address_is_refused(typed: str) -> None:
    assert clean_email(typed) is None


# --- Local paths ----------------------------------------------------------------------------------------------------

SITE = "https://keys.example.org/login"


def lands_on(path: str) -> str | None:
    """Say on which host a browser lands that follows a path from the sign-in page.

    As the URL standard has it and Python's urljoin has not: a backslash is a slash, tabs and line ends are not there,
    controls and spaces in front are dropped.
    """
    seen = path.lstrip("".join(map(chr, range(33)))).replace("\\", "/")
    return urlsplit(urljoin(SITE, seen.translate({ord(c): None for c in "\t\r\n"}))).hostname


@given(any_text | st.text("/\\.:@%25cfo0exampl \t\r\n?#;h", max_size=30).map(lambda text: f"/{text}"))
def test_a_local_path_never_leads_to_another_host(text: str) -> None:
    path = local_path(text)
    if path is not None:
        assert path == text
        assert lands_on(path) == lands_on(unquote(path)) == "keys.example.org"


@pytest.mark.parametrize(
    "trick",
    [
        "//evil.test", "///evil.test", "////evil.test", "/\\evil.test", "\\\\evil.test", "\\/evil.test",
        "/\\/evil.test",
        "https://evil.test", "http:evil.test", "https:/evil.test", "HTTPS://evil.test", "https:evil.test",
        "javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "vbscript:x", "mailto:ana@acme.test",
        "/%2fevil.test", "/%2Fevil.test", "/%5cevil.test", "/%5Cevil.test", "%2f%2fevil.test", "%5c%5cevil.test",
        "/\t/evil.test", "/\n/evil.test", "/\r/evil.test", "/%09/evil.test", "/%0a/evil.test", "/%0d/evil.test",
        " //evil.test", "\t//evil.test", "/ /evil.test", "/%20/evil.test", "\x00//evil.test", "/\x00/evil.test",
        "/%00", "/w/acme%0d%0aSet-Cookie:x=1", "/w/acme\r\nLocation: https://evil.test", "/w\\acme", "/w%5cacme",
        "evil.test", "w/acme", "./w", "../w", "?next=/", "#x", "@evil.test", ":80", "",
        "/w/acme\x7f", "/ẃ", "/\u2028", "//[::1", "/" + "a" * 2001, "//evil.test:99999", "/%", "https://[",
    ],
)  # fmt: skip
def test_tricks_that_lead_elsewhere_are_refused(trick: str) -> None:
    path = local_path(trick)
    assert path is None or trick == "/%"  # a stray percent sign is only an odd path of ours


@pytest.mark.parametrize(
    "path",
    [
        "/", "/w/acme", "/w/acme/api/keys?owner=all&page=2", "/w/acme/api/keys/new?from=key_1&add=tasks:write",
        "/w/acme?app=tasks&env=test#row", "/w/acme/x%3Fy", "/w?next=https://evil.test", "/w//acme",
    ],
)  # fmt: skip
def test_paths_on_this_site_are_kept(path: str) -> None:
    assert local_path(path) == path


def test_no_path_is_no_path() -> None:
    assert local_path(None) is None
