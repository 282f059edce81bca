"""The page, and the statuses under /jobs/."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import include, path

from .tasks import import_orders


def page(request: HttpRequest) -> HttpResponse:
    return render(request, "page.html", {"message": import_orders.send()})


urlpatterns = [path("", page), path("jobs/", include("dramatiq_status.web.django.urls"))]
