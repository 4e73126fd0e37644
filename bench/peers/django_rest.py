"""Django REST framework with the check that PEER_VARIANT names, in the project that `startproject` makes.

As a program it stores some tokens, each of another user, and prints a header's value for each.
"""

import json
import os
import sys

import django
import quickstart.settings as generated  # bench/peers.py has it made
from django.conf import settings

VARIANT = os.environ["PEER_VARIANT"]
ANSWER = json.loads(os.environ["PEER_ANSWER"])
TOKEN = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
}
JSON_ONLY = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
}
LIBRARY, REST_FRAMEWORK = {
    "token": ("rest_framework.authtoken", TOKEN),
    "tuned": ("rest_framework.authtoken", TOKEN | JSON_ONLY),
    "knox": ("knox", TOKEN | {"DEFAULT_AUTHENTICATION_CLASSES": ["knox.auth.TokenAuthentication"]}),
    "api_key": (
        "rest_framework_api_key",
        {"DEFAULT_PERMISSION_CLASSES": ["rest_framework_api_key.permissions.HasAPIKey"]},
    ),
}[VARIANT]

project = {name: getattr(generated, name) for name in dir(generated) if name.isupper()}
project |= {"DEBUG": False, "ALLOWED_HOSTS": ["127.0.0.1"], "ROOT_URLCONF": __name__, "REST_FRAMEWORK": REST_FRAMEWORK}
project["DATABASES"]["default"]["NAME"] = os.environ["PEER_DATABASE"]
if VARIANT == "tuned":
    project |= {"MIDDLEWARE": [], "INSTALLED_APPS": ["django.contrib.contenttypes", "django.contrib.auth"]}
    project["DATABASES"]["default"] |= {
        "CONN_MAX_AGE": None,
        "OPTIONS": {"init_command": "PRAGMA journal_mode = WAL"},
    }
project["INSTALLED_APPS"] += ["rest_framework", LIBRARY]
settings.configure(**project)
django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import transaction  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework.decorators import api_view  # noqa: E402
from rest_framework.response import Response  # noqa: E402


@api_view()
def me(request):
    return Response(ANSWER)


def healthz(request):
    return HttpResponse()


urlpatterns = [path("api/v1/me", me), path("healthz", healthz)]
app = get_wsgi_application()


@transaction.atomic
def stored(count):
    if VARIANT == "api_key":
        from rest_framework_api_key.models import APIKey  # noqa: PLC0415

        return [f"Api-Key {APIKey.objects.create_key(name=f'owner {n}')[1]}" for n in range(count)]
    users = User.objects.bulk_create(User(username=f"owner{n}") for n in range(count))
    if VARIANT == "knox":
        from knox.models import AuthToken  # noqa: PLC0415

        return [f"Token {AuthToken.objects.create(user)[1]}" for user in users]
    from rest_framework.authtoken.models import Token  # noqa: PLC0415

    return [f"Token {Token.objects.create(user=user).key}" for user in users]


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    print(*stored(int(sys.argv[1])), sep="\n")
