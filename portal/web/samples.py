"""A call as a program makes it, in curl, Python and JavaScript; and fields that an app's schema takes."""

import json
import shlex
from dataclasses import dataclass
from itertools import islice
from typing import Any

LANGUAGES = {"curl": "curl", "python": "Python", "js": "JavaScript"}
_TEXTS = {
    "date": "2025-11-12",
    "date-time": "2025-11-12T13:05:00Z",
    "email": "ines@example.org",
    "time": "13:05:00Z",
    "uri": "https://example.org",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
}
_MOST, _LONGEST = 3, 200  # items of a list, characters: a schema may ask for any number


@dataclass(frozen=True, slots=True)
class Request:
    """What a sample sends. In the address `{RECORD_ID}` stands for an environment variable of that name."""

    method: str
    url: str
    body: Any = None
    credential: str | None = "API_KEY"  # the environment variable that holds it
    has_token: bool = False  # the body is a form with the key as `token`
    is_answered: bool = True  # with a body
    is_repeatable: bool = False  # with an Idempotency-Key, which a program makes once and sends with each try


def sample(language: str, request: Request) -> str:
    """Write a request in a language; the key is the environment variable API_KEY."""
    return {"curl": _curl, "python": _python, "js": _javascript}[language](request)


def _curl(request: Request) -> str:
    options = ("" if request.is_answered else "-i ") + ("" if request.method == "GET" else f"-X {request.method} ")
    parts = [f'curl {options}"{request.url.replace("{RECORD_ID}", "$RECORD_ID")}"']
    if request.credential:
        parts.append(f'-H "Authorization: Bearer ${request.credential}"')
    if request.is_repeatable:
        parts.append('-H "Idempotency-Key: $(openssl rand -hex 16)"')
    if request.has_token:
        parts.append('-d "token=$API_KEY"')
    if request.body is not None:
        parts += [
            "-H 'Content-Type: application/json'",
            f"-d {shlex.quote(json.dumps(request.body, ensure_ascii=False))}",
        ]
    return " \\\n  ".join(parts)


def _python(request: Request) -> str:
    prefix = "f" if "{RECORD_ID}" in request.url else ""
    url = request.url.replace("{RECORD_ID}", "{os.environ['RECORD_ID']}")
    arguments = [f'{prefix}"{url}"']
    headers = []
    if request.credential:
        headers.append(f""""Authorization": f"Bearer {{os.environ['{request.credential}']}}\"""")
    if request.is_repeatable:
        headers.append('"Idempotency-Key": str(uuid.uuid4())')
    if headers:
        arguments.append(f"headers={{{', '.join(headers)}}}")
    if request.has_token:
        arguments.append("""data={"token": os.environ["API_KEY"]}""")
    if request.body is not None:
        arguments.append(f"json={_literal(request.body)}")
    arguments.append("timeout=10")
    result = "reply.json()" if request.is_answered else "reply.status_code"
    imports = ["import os"] if "os.environ" in "".join(arguments) else []
    imports += ["import uuid"] if request.is_repeatable else []
    return "\n".join(
        [
            *([*imports, ""] if imports else []),
            "import requests",
            "",
            f"reply = requests.{request.method.lower()}(",
            *(f"    {argument}," for argument in arguments),
            ")",
            "if not reply.ok:",
            '    raise SystemExit(f"{reply.status_code} {reply.text}")',
            f"print({result})",
        ]
    )


def _literal(value: Any) -> str:
    """Write JSON as Python: only its three words differ."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def _javascript(request: Request) -> str:
    url = request.url.replace("{RECORD_ID}", "${process.env.RECORD_ID}")
    quoted = f"`{url}`" if url != request.url else f'"{url}"'
    options = []
    if request.method != "GET":
        options.append(f'method: "{request.method}"')
    headers = []
    if request.credential:
        headers.append(f"Authorization: `Bearer ${{process.env.{request.credential}}}`")
    if request.is_repeatable:
        headers.append('"Idempotency-Key": randomUUID()')
    if request.body is not None:
        headers.append('"Content-Type": "application/json"')
    if headers:
        options.append(f"headers: {{ {', '.join(headers)} }}")
    if request.has_token:
        options.append("body: new URLSearchParams({ token: process.env.API_KEY })")
    if request.body is not None:
        options.append(f"body: JSON.stringify({json.dumps(request.body, ensure_ascii=False)})")
    call = (
        f"fetch({quoted}, {{\n" + "".join(f"  {option},\n" for option in options) + "})"
        if options
        else f"fetch({quoted})"
    )
    result = "await reply.json()" if request.is_answered else "reply.status"
    return "\n".join(
        [
            *(['import { randomUUID } from "node:crypto";', ""] if request.is_repeatable else []),
            f"const reply = await {call};",
            "if (!reply.ok) throw new Error(`${reply.status} ${await reply.text()}`);",
            f"console.log({result});",
        ]
    )


def example_fields(schema: Any, depth: int = 0) -> Any:
    """Make up a value for a simple JSON Schema: what it requires and a little more. It may not fit a hard one."""
    if not isinstance(schema, dict) or depth > 4:
        return {}
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    for word in ("examples", "enum"):
        if isinstance(schema.get(word), list) and schema[word]:
            return schema[word][0]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        return _example_object(schema, depth)
    if kind == "array":
        return [
            example_fields(schema.get("items"), depth + 1) for _ in range(min(_MOST, int(schema.get("minItems", 0))))
        ]
    simple = {"boolean": True, "null": None, "integer": 1, "number": 1}
    if kind in ("integer", "number"):
        return max(simple[kind] or 0, schema.get("minimum", 1))
    if kind in simple:
        return simple[kind]
    text = _TEXTS.get(str(schema.get("format")), "Example")
    return text.ljust(min(_LONGEST, int(schema.get("minLength", 0))), ".")[: int(schema.get("maxLength", _LONGEST))]


def _example_object(schema: dict[str, Any], depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    wanted = [name for name in schema.get("required", []) if isinstance(name, str)]
    wanted += list(islice((name for name in properties if name not in wanted), max(0, 2 - len(wanted))))
    return {name: example_fields(properties.get(name, {"type": "string"}), depth + 1) for name in wanted}
